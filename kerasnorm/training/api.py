"""What a user calls: the parts put together."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kerasnorm import plots
from kerasnorm.config import Config
from kerasnorm.data import prepare
from kerasnorm.progress import Progress
from kerasnorm.training import train
from kerasnorm.training.launch import this_launch
from kerasnorm.training.run import Run

if TYPE_CHECKING:
    import keras


def fit(
    config: Config | None = None,
    *,
    out: Path | str | None = None,
    resume: Path | str | None = None,
    callbacks: Iterable["keras.callbacks.Callback"] = (),
    progress: Progress | None = None,
    **overrides: Any,
) -> Run:
    """Trains one model and leaves a run's folder behind, pictures included.

    Arguments and errors are those of `kerasnorm.training.train.fit`.
    """
    run, dataset = train.fit_with_data(config, out, resume, callbacks, progress, overrides)
    if this_launch().rank > 0:
        return run
    dataset = dataset or prepare(run.config.data, run.config.train.seed)
    plots.draw_run(run, dataset.test.images)
    return run
