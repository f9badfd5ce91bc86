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
    """Trains one model, and leaves a run's folder with model, history, metrics and pictures.

    Args:
        config: What to train; by default the recipe `best`.
        out: The run's folder, new or empty; by default one under `results/runs`.
        resume: The folder of an unfinished run to resume, instead of `config` and `out`; or
            "auto": start the run in `out`, or resume it if it was started before.
        callbacks: Keras callbacks; their logs hold loss, accuracy, val_*, test_* and
            learning_rate.
        progress: Receives how far the run is, counted in steps; by default nothing is shown.
        **overrides: Any field of the config, named without its section.

    Returns:
        The finished run.

    Raises:
        ConfigError: A value is unknown or out of range.
        DataError: The data are missing, damaged or unfit.
        DivergedError: The loss or a weight is no longer finite.
        RunFolderError: The folder holds another run, is in use or cannot be written.
        MissingPackageError: The backend is not installed.
    """
    run, dataset = train.fit_with_data(config, out, resume, callbacks, progress, overrides)
    if this_launch().rank > 0:
        return run
    dataset = dataset or prepare(run.config.data, run.config.train.seed)
    plots.draw_run(run, dataset.test.images)
    return run
