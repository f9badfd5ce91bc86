"""The native engine of PyTorch on several processes, each with its shard of every batch.

Gradients, losses and the wish to stop travel in one sum a step, so that all processes take the same
step and stop at the same one. The recorded CUDA step of a single GPU is not used here.
"""

import math
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
from kerasnorm.engines.torch import engine as torch_engine
from kerasnorm.engines.torch.mode import Mode
from kerasnorm.engines.torch.process_group import TorchProcessGroup, lost
from kerasnorm.engines.totals import RunningMeans
from kerasnorm.inspection.evaluation import Scores
from kerasnorm.training.process_group import Shard, shard_of


class DistributedEngine(torch_engine.TorchEngine):
    """Trains on a shard of every batch; see `kerasnorm.engines.base.Engine`."""

    def __init__(
        self, model: keras.Model, batches: Batches, config: TrainConfig, group: TorchProcessGroup
    ) -> None:
        super().__init__(model, batches, config)
        self.group = group
        self.sum_ = group.sum_ if config.bn_sync == "on" else None

    def train_epoch(self, epoch: int, listener: BatchListener) -> Scores:
        """Trains on every batch of an epoch, counted from 0."""
        self.seed(epoch)
        if self.lowered.device.type != "cpu":  # where dropout draws from the device's generator
            torch.manual_seed(torch.initial_seed() + self.group.rank)
        self.model.stop_training = False
        self.sums.zero_()
        order, means = self.batches.order(epoch), RunningMeans(self.sums.tolist, 0)
        size = self.batches.batch_size
        for step in range(self.batches.steps):
            listener.on_batch_begin(step)
            batch = min(size, len(order) - step * size)
            shard = shard_of(batch, self.group.rank, self.group.size)
            arrays = self.batches.batch(epoch, step, order, shard.slice)
            images, labels = (torch.from_numpy(a).to(self.lowered.device) for a in arrays)
            with lost():
                self.step_part(images, labels, (self.config.seed, epoch, step), shard)
            means = RunningMeans(self.sums.tolist, means.count + batch)
            listener.on_batch_end(step, means)
            if self.model.stop_training:
                break
        if self.sum_ is None:
            self._average_statistics()
        return means.scores()

    def step_part(
        self, images: Tensor, labels: Tensor, key: tuple[int, int, int], shard: Shard
    ) -> None:
        """Takes one optimizer step, together with the other processes.

        Args:
            images: uint8, this process's shard, (N, H, W, C).
            labels: Class indices, (N,).
            key: (seed, epoch, step), from which dropout is drawn on the CPU.
            shard: Which shard it is.
        """
        logits = self.lowered(images, Mode(training=True, key=key, shard=shard, sum_=self.sum_))
        labels = labels.long()
        entropy = F.cross_entropy(logits, labels, reduction="sum") / shard.total
        penalties = [torch_engine.penalty(variable) for variable in self.regularized]
        loss = entropy + sum(penalties) * (shard.count / shard.total)
        gradients = torch.autograd.grad(loss, self.optimizer.parameters)
        with torch.no_grad():
            right = (logits.argmax(1) == labels).sum() * (shard.batch / shard.total)
            stop = loss.new_tensor(float(self.group.interruptions.number > 0))
            numbers = torch.stack([loss, entropy, right.to(loss.dtype), stop])
            summed = self.group.sum_(torch.cat([*(g.reshape(-1) for g in gradients), numbers]))
            *flat, numbers = summed.split([*(g.numel() for g in gradients), 4])
            gradients = tuple(f.view_as(g) for f, g in zip(flat, gradients, strict=True))
            self.optimizer.gather(gradients)
            self._look(numbers, gradients, key)
            self.optimizer.update()
            scale = numbers.new_tensor([shard.batch, shard.batch, 1.0])
            self.sums.add_(numbers[:3] * scale)

    def _look(
        self, numbers: Tensor, gradients: tuple[Tensor, ...], key: tuple[int, int, int]
    ) -> None:
        """Reads what all processes say: whether to stop, and whether the loss is finite."""
        loss, _, _, stop = numbers.tolist()
        if stop:
            self.group.interruptions.agree()
        if not math.isfinite(loss) or self.lowered.device.type == "cpu":
            self.refuse_nonfinite(loss, gradients, key)

    def _average_statistics(self) -> None:
        """Makes the moving statistics, each process's own in training, their mean."""
        with torch.no_grad(), lost():
            for variable in self.model.non_trainable_variables:
                if variable.value.is_floating_point():
                    self.group.sum_(variable.value).div_(self.group.size)

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Returns the logits (N, classes) of raw images (N, H, W, C), a shard from each process."""
        shard = shard_of(len(images), self.group.rank, self.group.size)
        classes: Any = self.model.output_shape[-1]
        logits = torch.zeros(len(images), classes, device=self.lowered.device)
        local = super().predict(images[shard.slice]) * np.float32(shard.batch / shard.total)
        logits[shard.slice] = torch.from_numpy(local).to(logits.device)
        with lost():
            found: NDArray[np.float32] = self.group.sum_(logits).cpu().numpy()
        return found
