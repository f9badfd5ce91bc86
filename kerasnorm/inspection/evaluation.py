"""Outputs of a model, and their scores against labels: loss, accuracy, confusion, mistakes.

The kind of outputs is logits, probabilities, or neither, by one rule for every format. They are
probabilities if every row is non-negative and sums to 1. That is a property of their values, which
is tested on the images that are evaluated. The graph of a Keras model then decides what values
alone cannot:

- The graph has a softmax over the last axis, followed only by operations that keep rows
  non-negative with a sum of 1 (identity, dropout, reshaping, averages over pixels or models): the
  outputs are probabilities, if the values agree.
- The graph has a linear layer (Dense, convolution), followed only by operations whose results are
  unbounded too (scaling, sums, pooling, ReLU, norms): the outputs are logits, whatever their values
  are. Small positive logits may look like probabilities on a few images.
- Otherwise, and for a file with neither a Keras graph nor metadata that name the kind, the values
  decide, together with those of a few images of noise, because a row that sums to 1 by chance does
  not do so on all of them. Rows that sum to 1 are probabilities. Values that are all between 0 and
  1 with another sum are neither: sigmoids of several labels, or a softmax that was scaled
  afterwards. Such a model has no cross-entropy, so it cannot be evaluated. All others are logits.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kerasnorm.data.stored import Images, in_parts
from kerasnorm.errors import CorruptFileError

if TYPE_CHECKING:
    import keras

Kind = Literal["logits", "probabilities", "other"]
Outputs = NDArray[np.float32]
Forward = Callable[[Images], Outputs]

PREDICT_BATCH = 500
MOST_PIXELS = 96 * 96  # of an image, up to which the size of a batch is what suits small images
# With more classes the cells of a confusion matrix are too small for names and counts.
MOST_NAMED_CLASSES = 20
TOLERANCE = 1e-2  # of a sum of probabilities; the error of a softmax in bfloat16 is up to 2e-3
PROBES = 16  # images of noise


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


def probe_images(shape: Sequence[int], count: int = PROBES, seed: int = 7) -> NDArray[np.uint8]:
    """Returns images (count, H, W, C) of noise of random brightness and contrast."""
    rng = np.random.Generator(np.random.PCG64(seed))
    middle = rng.uniform(0, 255, (count, 1, 1, shape[-1]))
    spread = rng.uniform(0, 128, (count, 1, 1, 1))
    noise = middle + spread * rng.standard_normal((count, *shape))
    return np.clip(noise, 0, 255).astype(np.uint8)


def check_finite(outputs: Outputs, name: object) -> None:
    """Raises a CorruptFileError if a model's outputs (N, classes) are not finite."""
    bad = int((~np.isfinite(outputs)).any(axis=1).sum())
    if bad:
        raise CorruptFileError(
            f"{name}: expected finite outputs. Received: NaN or infinity for {bad:,} of "
            f"{len(outputs):,} images. Its weights are damaged, or it overflows on pixels of "
            "0 to 255: train or export it again."
        )


def kind_by_values(outputs: Outputs) -> Kind:
    """Returns the kind of outputs (N, classes) by their values alone.

    >>> kind_by_values(np.array([[0.25, 0.75], [1.0, 0.0]], np.float32))
    'probabilities'
    >>> kind_by_values(np.array([[0.25, 0.25]], np.float32))
    'other'
    >>> kind_by_values(np.array([[0.25, -0.25]], np.float32))
    'logits'
    """
    if not (outputs >= 0).all():  # NaN is not at least 0 either
        return "logits"
    sums = outputs.sum(axis=1, dtype=np.float64)
    if np.allclose(sums, 1, rtol=0, atol=TOLERANCE):
        return "probabilities"
    return "other" if (outputs <= 1).all() else "logits"


def output_kind(outputs: Outputs, graph: Kind | None) -> Kind:
    """Returns the kind of outputs (N, classes).

    `graph` is the kind by the model's graph, None if it does not decide; probes are then among the
    outputs.
    """
    if graph != "probabilities":
        return graph or kind_by_values(outputs)
    found = kind_by_values(outputs)
    # `check_finite`, or the training loop, reports outputs that are not finite.
    return found if found == "probabilities" or not np.isfinite(outputs).all() else "other"


def as_logits(outputs: Outputs, kind: Kind, name: object = "The model") -> Outputs:
    """Returns outputs (N, classes) as logits: log-probabilities are logits of the same softmax.

    Raises:
        CorruptFileError: The outputs are neither logits nor probabilities.
    """
    if kind == "other":
        sums = outputs.sum(axis=1, dtype=np.float64)
        raise CorruptFileError(
            f"{name}: expected logits, or probabilities that sum to 1 for each image. Received: "
            f"values from {outputs.min():.3g} to {outputs.max():.3g} that sum to {sums.min():.3g} "
            f"to {sums.max():.3g}, as sigmoids do. Save it without its last activation, or with a "
            "softmax in its place."
        )
    if kind == "logits":
        return outputs
    return np.log(np.maximum(outputs, np.finfo(np.float32).tiny))
