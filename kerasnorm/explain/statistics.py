"""What goes on inside a run's network, layer by layer and epoch by epoch."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kerasnorm.config import Config
from kerasnorm.data import Dataset
from kerasnorm.data.prepare import prepare
from kerasnorm.engines.base import NullListener
from kerasnorm.explain import statistics_plots as drawing
from kerasnorm.explain.answer import Answer, expect, open_runs, some
from kerasnorm.progress import NullProgress, Progress
from kerasnorm.study.labels import run_labels
from kerasnorm.training.run import Run
from kerasnorm.training.train import make_engine

if TYPE_CHECKING:
    from kerasnorm.explain.activations import LayerStatistics, WeightHistogram

SHOWN = 0.999  # of the weights lie between the edges of a histogram
JUDGED = 2000  # images of each split that the trained model is scored on


@dataclass(frozen=True, eq=False)
class NetworkStatistics:
    """What goes on inside one run's network.

    Attributes:
        run: Its folder.
        label: What tells it from the others.
        norm: Its norm.
        layers: A row a layer and epoch of the training that was repeated.
        weights: Of the run's own trained model.
        train_accuracy: Of the trained model on training images as they are, 0 to 1.
        test_accuracy: On the test images.
        train_loss: In nats, likewise.
        test_loss: In nats, likewise.
        repeated_images: Training images of the repetition.
        repeated_epochs: Its epochs.
    """

    run: Path
    label: str
    norm: str
    layers: "list[LayerStatistics]"
    weights: "WeightHistogram"
    train_accuracy: float
    test_accuracy: float
    train_loss: float
    test_loss: float
    repeated_images: int
    repeated_epochs: int


def statistics(
    runs: Sequence[Run | Path | str],
    *,
    train_size: int = 2000,
    epochs: int = 0,
    images: int = 128,
    progress: Progress | None = None,
) -> Answer:
    """Looks into a run's network: activations, gradients, weights and updates, layer by layer.

    The training is repeated from the run's config, on fewer images by default, and looked into
    after each epoch. Weights, sparsity and the gap between training and test are those of the
    run's own trained model.

    Args:
        runs: Finished runs, or their folders.
        train_size: Training images of the repetition; 0 is all, which repeats the run.
        epochs: Epochs of the repetition; 0 is the run's.
        images: Training images that are looked at.
        progress: Receives how far the work is; by default nothing is shown.

    Returns:
        An `Answer` whose data are a list of `NetworkStatistics`, with the figures `layers`,
        `epochs` and `weights`.

    Raises:
        ConfigError: No run is given, or an argument is out of range.
        CorruptFileError: A run is damaged.
        DivergedError: The repeated training diverges.
    """
    progress = progress or NullProgress()
    for name, value, low in (("train_size", train_size, 0), ("epochs", epochs, 0)):
        expect(value >= low, name, f"at least {low}", value)
    expect(images >= 1, "images", "at least 1", images)
    loaded, backend = open_runs(runs)
    from kerasnorm.explain.activations import Taps, weight_histogram

    models = [run.model() for run in loaded]
    kernels = [Taps(model).weights() for model in models]
    limit = max(
        float(np.quantile(np.abs(np.concatenate([k.ravel() for k in net])), SHOWN))
        for net in kernels
    )
    total = sum(epochs or run.config.train.epochs for run in loaded)
    done, found = 0, []
    progress.start("statistics", total)

    def tick() -> None:
        nonlocal done
        done += 1
        progress.advance(done)

    for run, label, model, own in zip(loaded, run_labels(loaded), models, kernels, strict=True):
        config = run.config.replace(backend=backend)
        dataset = prepare(config.data, config.train.seed)
        repetition = _Repetition(config, dataset, train_size, epochs)
        found.append(
            NetworkStatistics(
                run.path,
                label,
                config.model.norm,
                repetition.measure(images, tick),
                weight_histogram(own, limit),
                **_scores(model, dataset),
                repeated_images=len(repetition.dataset.train),
                repeated_epochs=repetition.epochs,
            )
        )
    return Answer(found, drawing.statistics_figures(found))


def _scores(model: Any, dataset: Dataset) -> dict[str, float]:
    """Returns a trained model's accuracy and loss on both splits."""
    from kerasnorm.explain.probe import Probe

    probe = Probe(model)
    scores: dict[str, float] = {}
    for name, split in (("train", dataset.train), ("test", dataset.test)):
        judged = some(split, JUDGED)
        loss, accuracy = probe.score(judged.images, judged.labels)
        scores |= {f"{name}_loss": loss, f"{name}_accuracy": accuracy}
    return scores


class _Repetition:
    """A run's training, on fewer images or epochs if wanted."""

    def __init__(self, config: Config, dataset: Dataset, train_size: int, epochs: int) -> None:
        if 0 < train_size < len(dataset.train):
            dataset = dataclasses.replace(dataset, train=some(dataset.train, train_size))
        self.dataset = dataset
        self.epochs = epochs or config.train.epochs
        size = min(config.train.batch_size, len(dataset.train))
        self.engine = make_engine(config.replace(epochs=self.epochs, batch_size=size), dataset)

    def measure(self, images: int, tick: Callable[[], None]) -> "list[LayerStatistics]":
        """Trains, and looks into every layer before and after each epoch, on some images."""
        from kerasnorm.explain.activations import Taps

        taps, looked = Taps(self.engine.model), some(self.dataset.train, images)
        rows = taps.measure(looked, 0)
        for epoch in range(self.epochs):
            before = taps.weights()
            self.engine.train_epoch(epoch, NullListener())
            rows += taps.measure(looked, epoch + 1, before)
            tick()
        return rows
