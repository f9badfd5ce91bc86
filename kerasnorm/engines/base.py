"""The interface that every training engine keeps."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from kerasnorm.inspection.evaluation import Scores

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class BatchListener(Protocol):
    """Is told of each step of training; `logs` holds the running means of Keras's metrics."""

    def on_batch_begin(self, step: int) -> None:
        """Step `step` of the epoch, counted from 0, is about to run."""

    def on_batch_end(self, step: int, logs: Mapping[str, float]) -> None:
        """Step `step` has run."""


class NullListener:
    """A `BatchListener` that does nothing."""

    def on_batch_begin(self, step: int) -> None:
        """Does nothing."""

    def on_batch_end(self, step: int, logs: Mapping[str, float]) -> None:
        """Does nothing."""


class Engine(Protocol):
    """Trains one `keras.Model` on one `Batches`.

    Attributes:
        model: The model, whose variables hold the state of training whenever no epoch runs.
    """

    model: Any

    def train_epoch(self, epoch: int, listener: BatchListener) -> Scores:
        """Trains on every batch of an epoch, counted from 0.

        Returns:
            Cross-entropy and accuracy over the epoch's training images, as the model saw them:
            augmented, with dropout, while it changed. Regularization terms are not in the loss.

        Raises:
            DivergedError: The loss is no longer finite.
        """

    def predict(self, images: "NDArray[np.uint8]") -> "NDArray[np.float32]":
        """Returns the logits (N, classes) of raw images (N, H, W, C)."""

    def state(self) -> "dict[str, NDArray[Any]]":
        """Returns copies of all that training changes: weights, statistics, optimizer."""

    def load_state(self, state: "dict[str, NDArray[Any]]") -> None:
        """Puts back what `state` returned; training goes on as if it had not stopped."""
