"""The kind of a classifier's outputs: logits, probabilities, or neither; one rule for every format.

Outputs are probabilities if every row is non-negative and sums to 1. That is a property of their
values, which is tested on the images that are evaluated. The graph of a Keras model then decides
what values alone cannot:

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

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from kerasnorm.errors import CorruptFileError

if TYPE_CHECKING:
    from kerasnorm.data.stored import Images

Kind = Literal["logits", "probabilities", "other"]
Outputs = NDArray[np.float32]
Forward = Callable[["Images"], Outputs]

TOLERANCE = 1e-2  # of a sum of probabilities; the error of a softmax in bfloat16 is up to 2e-3
PROBES = 16  # images of noise


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
