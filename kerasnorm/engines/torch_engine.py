"""The native engine of PyTorch: the lowered model, one vector of weights, no host in the loop."""

import ctypes
import math
import platform
from typing import Any

import keras
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (its usual name)

from kerasnorm.analysis.evaluate import Scores
from kerasnorm.config import TrainConfig
from kerasnorm.data.batches import Batches
from kerasnorm.engines.base import BatchListener
from kerasnorm.engines.diagnosis import bad_gradient, diverged
from kerasnorm.engines.portable import PortableEngine
from kerasnorm.engines.torch_layers import Mode
from kerasnorm.engines.torch_lowering import LoweredModel
from kerasnorm.engines.torch_optimizer import FlatOptimizer
from kerasnorm.engines.totals import RunningMeans, check_finite


class TorchEngine(PortableEngine):
    """Trains with plain PyTorch calls; see `kerasnorm.engines.base.Engine`.

    The compiled Keras model and its optimizer own all state, as in the portable engine, so that
    callbacks and checkpoints are the same.
    """

    def __init__(self, model: keras.Model, batches: Batches, config: TrainConfig) -> None:
        super().__init__(model, batches, config)
        keep_freed_memory()
        self.lowered = LoweredModel(model)
        steps = config.epochs * batches.steps
        variables = model.trainable_variables
        self.optimizer = FlatOptimizer(model.optimizer, variables, config, steps)
        self.regularized = [v for v in variables if v.regularizer is not None]
        self.sums = torch.zeros(3, device=self.lowered.device)

    def train_epoch(self, epoch: int, listener: BatchListener) -> Scores:
        """Trains on every batch of an epoch, counted from 0."""
        self.seed(epoch)
        self.model.stop_training = False
        self.sums.zero_()
        order, means = self.batches.order(epoch), RunningMeans(self.sums.tolist, 0)
        for step in range(self.batches.steps):
            listener.on_batch_begin(step)
            images, labels = self.batches.batch(epoch, step, order)
            self.step(self._device(images), self._device(labels), (self.config.seed, epoch, step))
            means = RunningMeans(self.sums.tolist, means.count + len(labels))
            if self.lowered.device.type == "cpu":
                check_finite(means["loss"], epoch, step, self.config)
            listener.on_batch_end(step, means)
            if self.model.stop_training:
                break
        return means.scores()

    def _device(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.lowered.device)

    def step(self, images: Tensor, labels: Tensor, key: tuple[int, int, int]) -> None:
        """Takes one optimizer step and adds to the sums of the epoch.

        Args:
            images: uint8, (N, H, W, C).
            labels: Class indices, (N,).
            key: (seed, epoch, step), from which dropout is drawn.
        """
        logits = self.lowered(images, Mode(training=True, key=key))
        labels = labels.long()
        entropy = F.cross_entropy(logits, labels)
        loss = sum((_penalty(variable) for variable in self.regularized), entropy)
        gradients = torch.autograd.grad(loss, self.optimizer.parameters)
        if self.lowered.device.type == "cpu":
            self.refuse_nonfinite(float(loss.detach()), gradients, key)
        self.optimizer.update(gradients)
        with torch.no_grad():
            right = (logits.argmax(1) == labels).sum()
            count = len(labels)
            self.sums.add_(torch.stack([loss * count, entropy * count, right.to(loss.dtype)]))

    def refuse_nonfinite(
        self, loss: float, gradients: tuple[Tensor, ...], key: tuple[int, int, int]
    ) -> None:
        """Ends a run before a loss or gradient that is not finite has spoilt the weights.

        Raises:
            DivergedError: One is not; the message says where it began.
        """
        # A sum is finite if all its terms are, but for overflow; then each is looked at.
        if math.isfinite(loss) and all(math.isfinite(g.sum()) for g in gradients):
            return
        place = bad_gradient(self.model.trainable_variables, gradients)
        if not math.isfinite(loss):
            raise self.diverged(loss, *key[1:])
        if place is not None:
            raise diverged(self, "gradient is not finite", *key[1:], place)

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Returns the logits (N, classes) of raw images (N, H, W, C)."""
        return predict(self.lowered, images)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
KEPT = 1 << 30  # bytes


def keep_freed_memory() -> None:
    """Asks glibc's malloc to keep what is freed; does nothing where there is no glibc.

    A step frees and takes the same hundred megabytes again; given back to the system in between,
    each page costs a fault when it is next touched.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT)
        libc.mallopt(M_MMAP_THRESHOLD, KEPT)


def _penalty(variable: Any) -> Any:
    """Returns what a regularizer adds to the loss; Keras's own makes tensors from numbers."""
    weight, regularizer = variable.value, variable.regularizer
    if not isinstance(regularizer, keras.regularizers.L1L2):
        return regularizer(weight)
    return (
        float(regularizer.l1) * weight.abs().sum() + float(regularizer.l2) * weight.square().sum()
    )


PREDICT_BATCH = 250


def predict(lowered: LoweredModel, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Returns the outputs of a lowered model for raw images (N, H, W, C)."""
    with torch.no_grad():
        outputs = [
            lowered(torch.from_numpy(images[at : at + PREDICT_BATCH]).to(lowered.device), Mode())
            for at in range(0, len(images), PREDICT_BATCH)
        ]
        found: NDArray[np.float32] = torch.cat(outputs).float().cpu().numpy()
    return found
