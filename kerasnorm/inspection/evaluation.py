"""Outputs of a model, and their scores against labels: loss, accuracy, confusion, mistakes."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kerasnorm.data.stored import Images, in_parts

if TYPE_CHECKING:
    import keras

PREDICT_BATCH = 500
MOST_PIXELS = 96 * 96  # of an image, up to which the size of a batch is what suits small images
# With more classes the cells of a confusion matrix are too small for names and counts.
MOST_NAMED_CLASSES = 20


class Scores(NamedTuple):
    """Mean cross-entropy, in nats, and accuracy, 0 to 1, over a set of images."""

    loss: float
    accuracy: float


@dataclass(frozen=True)
class Mistake:
    """An image that was classified wrongly.

    It is the image at `index` of the test set. `true` and `predicted` are class indices, and the
    confidence is the softmax probability of the latter, 0 to 1.
    """

    index: int
    true: int
    predicted: int
    confidence: float


def predict(model: "keras.Model", images: Images) -> NDArray[np.float32]:
    """Returns the outputs (N, classes) of a Keras model for raw images (N, H, W, C)."""
    size = at_once(images, PREDICT_BATCH)
    outputs = [model.predict(part, batch_size=size, verbose=0) for part in in_parts(images, size)]
    return np.concatenate(outputs).astype(np.float32)


def at_once(images: Images, most: int) -> int:
    """Returns how many images fit in memory at once: `most` up to 96x96 pixels, fewer above."""
    pixels = math.prod(images.shape[1:3])
    return max(1, min(most, most * MOST_PIXELS // pixels))


def log_softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Returns log-probabilities (N, classes) of logits (N, classes), in float64."""
    shifted: NDArray[np.float64] = logits.astype(np.float64)
    shifted = shifted - shifted.max(axis=1, keepdims=True)
    total: NDArray[np.float64] = np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted - total


def score(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> Scores:
    """Returns the mean cross-entropy, in nats, and the accuracy.

    Logits are (N, classes), labels class indices (N,).
    """
    picked = np.take_along_axis(log_softmax(logits), labels[:, None].astype(np.int64), axis=1)
    accuracy = np.mean(logits.argmax(axis=1) == labels)
    return Scores(float(-picked.mean()), float(accuracy))


def confusion(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray[np.int64]:
    """Returns counts (classes, classes): rows are true classes, columns predicted ones."""
    classes = logits.shape[1]
    pairs = labels.astype(np.int64) * classes + logits.argmax(axis=1)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


class ConfusedPair(NamedTuple):
    """Indices of a true and a predicted class, and the number of images confused so."""

    true: int
    predicted: int
    images: int


def most_confused(counts: NDArray[np.int64], count: int) -> list[ConfusedPair]:
    """Returns the pairs of classes that are confused most often, the most frequent first.

    Rows of the confusion matrix are true classes.

    >>> most_confused(np.array([[8, 1, 0], [0, 5, 4], [0, 0, 9]]), 5)
    [ConfusedPair(true=1, predicted=2, images=4), ConfusedPair(true=0, predicted=1, images=1)]
    """
    wrong = np.where(np.eye(len(counts), dtype=bool), 0, counts).ravel()
    places = np.flatnonzero(wrong)
    order = places[np.argsort(-wrong[places], kind="stable")][:count]
    return [ConfusedPair(*divmod(int(place), len(counts)), int(wrong[place])) for place in order]


def worst_mistakes(
    logits: NDArray[np.floating], labels: NDArray[np.integer], count: int = 10
) -> list[Mistake]:
    """Returns the mistakes of highest confidence, the worst first."""
    predicted = logits.argmax(axis=1)
    confidence = np.exp(log_softmax(logits).max(axis=1))
    wrong = np.flatnonzero(predicted != labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:count]
    return [Mistake(int(i), int(labels[i]), int(predicted[i]), float(confidence[i])) for i in worst]
