"""The native engine of PyTorch: the lowered model, one vector of weights, no host in the loop."""

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (its usual name)

from kerasnorm.config import TrainConfig
from kerasnorm.data.batches import Batches
from kerasnorm.engines.base import BatchListener
from kerasnorm.engines.diagnosis import bad_gradient, diverged
from kerasnorm.engines.keras_engine import PortableEngine
from kerasnorm.engines.memory import keep_freed_memory
from kerasnorm.engines.torch.lowering import LoweredModel
from kerasnorm.engines.torch.mode import Mode
from kerasnorm.engines.torch.optimizer import FlatOptimizer
from kerasnorm.engines.torch.resident import RecordedStep, ResidentData
from kerasnorm.engines.totals import RunningMeans
from kerasnorm.inspection.evaluation import Scores


class TorchEngine(PortableEngine):
    """Trains with plain PyTorch calls; see `kerasnorm.engines.base.Engine`.

    The compiled Keras model and its optimizer own all state, as in the portable engine, so that
    callbacks and checkpoints are the same. On an accelerator the data stay there, and on CUDA a
    step of a model that is lowered as a whole is one recorded graph.
    """

    def __init__(self, model: keras.Model, batches: Batches, config: TrainConfig) -> None:
        super().__init__(model, batches, config)
        keep_freed_memory()
        self.lowered = LoweredModel(model)
        steps = config.epochs * batches.steps
        variables = model.trainable_variables
        self.optimizer = FlatOptimizer(model.optimizer, variables, config, steps)
        self.regularized = [v for v in variables if v.regularizer is not None]
        device = self.lowered.device
        self.sums = torch.zeros(3, device=device)
        self.resident = None if device.type == "cpu" else ResidentData(batches, device)
        self.can_record = device.type == "cuda" and self.lowered.is_whole
        self.recorded: RecordedStep | None = None

    def train_epoch(self, epoch: int, listener: BatchListener) -> Scores:
        """Trains on every batch of an epoch, counted from 0."""
        take_step = self._begin(epoch)
        self.seed(epoch)
        self.model.stop_training = False
        self.sums.zero_()
        means = RunningMeans(self.sums.tolist, 0)
        for step in range(self.batches.steps):
            listener.on_batch_begin(step)
            means = RunningMeans(self.sums.tolist, means.count + take_step(step))
            listener.on_batch_end(step, means)
            if self.model.stop_training:
                break
        return means.scores()

    def _begin(self, epoch: int) -> Callable[[int], int]:
        """Returns what takes a step of an epoch and returns how many images it was of."""
        # Who trains on other batches for a while, such as a part of an epoch, has them on the host.
        is_resident = self.resident is not None and self.resident.batches is self.batches
        return self._on_device(epoch) if is_resident else self._from_host(epoch)

    def _from_host(self, epoch: int) -> Callable[[int], int]:
        order = self.batches.order(epoch)

        def take_step(step: int) -> int:
            arrays = self.batches.batch(epoch, step, order)
            images, labels = (torch.from_numpy(a).to(self.lowered.device) for a in arrays)
            self.step(images, labels, (self.config.seed, epoch, step))
            return len(labels)

        return take_step

    def _on_device(self, epoch: int) -> Callable[[int], int]:
        data, size = self.resident, self.batches.batch_size
        assert data is not None
        data.begin(epoch)
        if self.can_record and self.recorded is None:
            state = self.state()
            self.recorded = RecordedStep(lambda: self.step(*data.take(size)))
            self.load_state(state)
            data.begin(epoch)

        def take_step(step: int) -> int:
            count = min(size, len(self.batches.split) - step * size)
            if self.recorded is not None and count == size:
                self.recorded()
            else:
                self.step(*data.take(count), (self.config.seed, epoch, step))
            return count

        return take_step

    def step(self, images: Tensor, labels: Tensor, key: tuple[int, int, int] = (0, 0, 0)) -> None:
        """Takes one optimizer step and adds to the sums of the epoch.

        Args:
            images: uint8, (N, H, W, C).
            labels: Class indices, (N,).
            key: (seed, epoch, step), from which dropout is drawn on the CPU.
        """
        logits = self.lowered(images, Mode(training=True, key=key))
        labels = labels.long()
        entropy = F.cross_entropy(logits, labels)
        loss = sum((penalty(variable) for variable in self.regularized), entropy)
        gradients = torch.autograd.grad(loss, self.optimizer.parameters)
        self.optimizer.gather(gradients)
        if self.lowered.device.type == "cpu":
            self.refuse_nonfinite(float(loss.detach()), gradients, key)
        self.optimizer.update()
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
        total = self.optimizer.gradient.sum()
        if math.isfinite(loss) and math.isfinite(total):
            return
        place = bad_gradient(self.model.trainable_variables, gradients)
        if not math.isfinite(loss):
            raise self.diverged(loss, *key[1:])
        if place is not None:
            raise diverged(self, "gradient is not finite", *key[1:], place)

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Returns the logits (N, classes) of raw images (N, H, W, C)."""
        return predict(self.lowered, images)


def penalty(variable: Any) -> Any:
    """Returns what a regularizer adds to the loss; Keras's own makes tensors from numbers."""
    weight, regularizer = variable.value, variable.regularizer
    if not isinstance(regularizer, keras.regularizers.L1L2):
        return regularizer(weight)
    return (
        float(regularizer.l1) * weight.abs().sum() + float(regularizer.l2) * weight.square().sum()
    )


PREDICT_BATCH, ACCELERATED_BATCH = 250, 2000  # a core likes its cache, a GPU to be busy


def predict(lowered: LoweredModel, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Returns the outputs of a lowered model for raw images (N, H, W, C)."""
    size = PREDICT_BATCH if lowered.device.type == "cpu" else ACCELERATED_BATCH
    with torch.no_grad():
        outputs = [
            lowered(torch.from_numpy(images[at : at + size]).to(lowered.device), Mode())
            for at in range(0, len(images), size)
        ]
        found: NDArray[np.float32] = torch.cat(outputs).float().cpu().numpy()
    return found
