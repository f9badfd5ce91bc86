"""The loss around a run: along the gradient while it trains, and over a plane afterwards."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kerasnorm.data.prepare import prepare
from kerasnorm.explain import landscape_plots as drawing
from kerasnorm.explain.answer import Answer, expect, open_runs, some
from kerasnorm.progress import NullProgress, Progress
from kerasnorm.study.labels import run_labels
from kerasnorm.training.run import Run
from kerasnorm.training.train import make_engine

if TYPE_CHECKING:
    from kerasnorm.explain.landscape_measure import GradientLines, Surface


@dataclass(frozen=True, eq=False)
class Landscape:
    """The loss around one run.

    Attributes:
        run: Its folder.
        label: What tells it from the others.
        norm: Its norm.
        lines: Along the gradient while it trains.
        surface: Around the trained model.
    """

    run: Path
    label: str
    norm: str
    lines: "GradientLines"
    surface: "Surface"


def landscape(
    runs: Sequence[Run | Path | str],
    *,
    steps: int = 100,
    lines: int = 10,
    rate: float = 0.1,
    points: int = 13,
    radius: float = 1.0,
    images: int = 300,
    progress: Progress | None = None,
) -> Answer:
    """Measures the loss along the gradient while a run trains, and around its trained model.

    The first steps of each run are trained again, from its config. Every few of them: at weights
    w with gradient g, the loss of the batch and the change of its gradient at w - t * g, t from
    rate / 2 to 4 * rate (Santurkar et al. 2018, arXiv 1805.11604). Then the loss of test images
    at w + a * d + b * e, d and e random, each filter as long as the model's own (Li et al. 2018,
    arXiv 1712.09913).

    Args:
        runs: Finished runs, or their folders.
        steps: Training steps to repeat; no more than the run had.
        lines: How many times to look along the gradient.
        rate: Length of the step along it, the same for all runs.
        points: Of each axis of the surface; odd.
        radius: The surface reaches from -radius to radius.
        images: Test images that the surface is measured on.
        progress: Receives how far the work is; by default nothing is shown.

    Returns:
        An `Answer` whose data are a list of `Landscape`, with the figures `gradient`, `line`,
        `contours` and `surface`.

    Raises:
        ConfigError: No run is given, or an argument is out of range.
        CorruptFileError: A run is damaged.
        DivergedError: The repeated training diverges.
    """
    progress = progress or NullProgress()
    expect(points % 2 == 1 and points >= 3, "points", "an odd number of at least 3", points)
    for name, value in (("steps", steps), ("lines", lines), ("images", images)):
        expect(value >= 1, name, "at least 1", value)
    for name, number in (("rate", rate), ("radius", radius)):
        expect(0 < number < math.inf, name, "a number above 0", number)
    loaded, backend = open_runs(runs)
    from kerasnorm.explain import landscape_measure as analysis

    done, total = 0, len(loaded) * (lines + points)
    progress.start("landscape", total)

    def tick() -> None:
        nonlocal done
        done += 1
        progress.advance(done)

    found = []
    for run, label in zip(loaded, run_labels(loaded), strict=True):
        config = run.config.replace(backend=backend)
        dataset = prepare(config.data, config.train.seed)
        engine = make_engine(config, dataset)
        batches = engine.batches  # type: ignore[attr-defined]
        taken = min(steps, config.train.epochs * batches.steps)
        walked = analysis.gradient_lines(
            engine, batches, steps=taken, lines=min(lines, taken), rate=rate, tick=tick
        )
        around = analysis.surface(
            run.model(), some(dataset.test, images), points=points, radius=radius, tick=tick
        )
        found.append(Landscape(run.path, label, config.model.norm, walked, around))
    progress.advance(total)
    return Answer(found, drawing.landscape_figures(found))
