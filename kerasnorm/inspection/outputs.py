"""What a classifier gives: logits, probabilities, or neither; one rule for every format.

Outputs are probabilities where every row is non-negative and sums to 1. That is a property of their
values, and it is tested on the images that are judged. The graph of a Keras model then settles what
values alone cannot:

- The graph shows a softmax over the last axis, and behind it only operations that keep rows
  non-negative with a sum of 1 (identity, dropout, reshaping, averages over pixels or models):
  probabilities, if the values agree.
- The graph shows a linear layer (Dense, convolution), and behind it only operations that give
  unbounded numbers again (scaling, sums, pooling, ReLU, norms): logits, whatever the values. Small
  positive logits may look like probabilities on a few images.
- Otherwise, and where a file has neither a Keras graph nor metadata that say it, values decide,
  those of a few images of noise included: a row that sums to 1 by chance does not do so on all of
  them. Rows that sum to 1 are probabilities. Values that all lie between 0 and 1 with another sum
  are neither: sigmoids of several labels, or a softmax that was scaled afterwards. Such a model has
  no cross-entropy, so it is refused when it is judged. All else are logits.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kerasnorm.errors import CorruptFileError

Kind = Literal["logits", "probabilities", "other"]
Outputs = NDArray[np.float32]
Forward = Callable[[NDArray[np.uint8]], Outputs]

TOLERANCE = 1e-2  # of a sum of probabilities; a softmax in bfloat16 is off by up to 2e-3
PROBES = 16


def probe_images(shape: Sequence[int], count: int = PROBES) -> NDArray[np.uint8]:
    """Returns images (count, H, W, C) of noise of any brightness and contrast."""
    rng = np.random.Generator(np.random.PCG64(7))
    middle = rng.uniform(0, 255, (count, 1, 1, shape[-1]))
    spread = rng.uniform(0, 128, (count, 1, 1, 1))
    noise = middle + spread * rng.standard_normal((count, *shape))
    return np.clip(noise, 0, 255).astype(np.uint8)


def check_finite(outputs: Outputs, name: object) -> None:
    """Makes sure that a model's outputs (N, classes) are numbers.

    Args:
        outputs: Of the images that are judged.
        name: Of the model, for the message.

    Raises:
        CorruptFileError: An output is NaN or infinite.
    """
    bad = int((~np.isfinite(outputs)).any(axis=1).sum())
    if bad:
        raise CorruptFileError(
            f"{name}: expected finite outputs. Received: NaN or infinity for {bad:,} of "
            f"{len(outputs):,} images. Its weights are damaged, or it overflows on pixels of "
            "0 to 255: train or export it again."
        )


def kind_by_values(outputs: Outputs) -> Kind:
    """Returns what outputs (N, classes) are by their values alone.

    >>> kind_by_values(np.array([[0.25, 0.75], [1.0, 0.0]], np.float32))
    'probabilities'
    >>> kind_by_values(np.array([[0.25, 0.25]], np.float32))
    'other'
    >>> kind_by_values(np.array([[0.25, -0.25]], np.float32))
    'logits'
    """
    if not (outputs >= 0).all():  # NaN is not, either
        return "logits"
    sums = outputs.sum(axis=1, dtype=np.float64)
    if np.allclose(sums, 1, rtol=0, atol=TOLERANCE):
        return "probabilities"
    return "other" if (outputs <= 1).all() else "logits"


def output_kind(outputs: Outputs, graph: Kind | None) -> Kind:
    """Returns what outputs (N, classes) are.

    Args:
        outputs: Of the images that are judged, and of probes where `graph` is None.
        graph: What the model's graph says; None where it does not tell, or there is none.
    """
    if graph != "probabilities":
        return graph or kind_by_values(outputs)
    found = kind_by_values(outputs)
    # Outputs that are not finite are left to `check_finite`, and to the loop of a training.
    return found if found == "probabilities" or not np.isfinite(outputs).all() else "other"


def as_logits(outputs: Outputs, kind: Kind, name: object = "The model") -> Outputs:
    """Returns outputs (N, classes) as logits: log-probabilities are logits of the same softmax.

    Args:
        outputs: What the model gives.
        kind: What they are.
        name: Of the model, for the message.

    Raises:
        CorruptFileError: They are neither logits nor probabilities.
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
    logits: Outputs = np.log(np.maximum(outputs, np.finfo(np.float32).tiny))
    return logits
