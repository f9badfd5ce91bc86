"""The native engine of PyTorch, a lowered model whose weights are one vector, and its groups."""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import keras
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed
from torch.distributed.rendezvous import rendezvous
from torch.nn import functional as F  # noqa: N812  (its usual name)

from kerasnorm.config import TrainConfig
from kerasnorm.data.batches import Batches
from kerasnorm.data.stored import Images, StoredImages, select
from kerasnorm.engines.base import NativeEngine, StepResult, last_nonfinite
from kerasnorm.engines.torch.layers import Mode
from kerasnorm.engines.torch.lowering import LoweredModel
from kerasnorm.engines.torch.optimizer import FlatOptimizer
from kerasnorm.engines.torch.resident import RecordedStep, ResidentData
from kerasnorm.engines.torch.sharing import Sharing
from kerasnorm.errors import KerasnormError, LostProcessError, listed
from kerasnorm.inspection.evaluation import at_once
from kerasnorm.process_group import Launch, ProcessGroup, Shard, shard_of

T = TypeVar("T")
logger = logging.getLogger(__name__)
NUMBERS = 4  # of a step, summed over the processes together with the gradients


class TorchEngine(NativeEngine):
    """Trains with plain PyTorch calls; see `kerasnorm.engines.base.Engine`.

    A process that trains alone keeps data in memory on its accelerator too; on CUDA it records the
    step of a completely lowered model as one graph. Several processes take a shard of every batch
    each. One sum per step adds up their gradients, losses and stop requests, so that all take the
    same step and stop at the same one.
    """

    def __init__(
        self,
        model: keras.Model,
        batches: Batches,
        config: TrainConfig,
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(model, batches, config, group)
        self.plan()
        is_alone = self.group.size == 1
        self.sum_ = None if is_alone or config.bn_sync == "off" else self.group.sum_
        is_stored = isinstance(batches.split.images, StoredImages)
        if self.sum_ is not None and self.group.is_first:
            self._note_unsynchronized()
        is_resident = is_alone and self.device.type != "cpu" and not is_stored
        self.resident = ResidentData(batches, self.device) if is_resident else None

    def _note_unsynchronized(self) -> None:
        """Warns of batch norms that Keras computes, each process over its own shard of a batch."""
        found = [
            layer.name
            for operation in self.lowered.foreign
            if isinstance(operation, keras.Layer)
            for layer in operation._flatten_layers()
            if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
        ]
        if found:
            logger.warning(
                f"Batch norms that are not synchronized: {listed(dict.fromkeys(found))}. Each "
                "process computes their statistics over its own shard of a batch, because "
                "their axis is not the last, they take neither images nor features, or they are "
                "inside of another layer."
            )

    def plan(self) -> None:
        """Lowers the model; see `Engine.plan`."""
        self.lowered = LoweredModel(self.model, is_fused=self.is_fused)
        self.fused_kernels = self.lowered.fused_kernels
        self.device = self.lowered.device
        variables = self.model.trainable_variables
        keras_optimizer = self.model.optimizer
        self.optimizer = FlatOptimizer(keras_optimizer, variables, self.config, self.rates, NUMBERS)
        self.regularized = [v for v in variables if v.regularizer is not None]
        self.can_record = self.device.type == "cuda" and not self.lowered.foreign
        self.recorded: RecordedStep | None = None

    def take_steps(self, epoch: int) -> Iterator[StepResult]:
        """Takes the optimizer steps of an epoch, one for each result that is requested."""
        if self.device.type != "cpu":  # dropout draws from the device's generator there
            torch.manual_seed(torch.initial_seed() + self.group.rank)
        # Analyses temporarily train on parts of an epoch, which are on the host.
        if self.resident is not None and self.resident.batches is self.batches:
            return self._from_device(self.resident, epoch)
        return self._from_host(epoch)

    def _from_host(self, epoch: int) -> Iterator[StepResult]:
        order, size = self.batches.order(epoch), self.batches.batch_size
        with Sharing() as sharing:
            for step in range(self.batches.steps):
                sharing.look()
                batch = min(size, len(self.batches.split) - step * size)
                shard = shard_of(batch, self.group.rank, self.group.size)
                arrays = self.batches.batch(epoch, step, order, shard.slice)
                images, labels = (torch.from_numpy(array).to(self.device) for array in arrays)
                totals = self.step(images, labels, shard, epoch, step)
                is_stopping = self.group.size > 1 and bool(totals[3])
                yield StepResult(totals[:3], batch, is_stopping)

    def _from_device(self, data: ResidentData, epoch: int) -> Iterator[StepResult]:
        size = self.batches.batch_size
        data.begin(epoch)
        if self.can_record and self.recorded is None:
            state = self.state()
            whole = shard_of(size, 0, 1)
            self.recorded = RecordedStep(lambda: self.step(*data.take(size), whole))
            self.load_state(state)
            data.begin(epoch)
        for step in range(self.batches.steps):
            count = min(size, len(self.batches.split) - step * size)
            if self.recorded is not None and count == size:
                totals = self.recorded()
            else:
                totals = self.step(*data.take(count), shard_of(count, 0, 1), epoch, step)
            yield StepResult(totals[:3], count)

    def step(
        self, images: Tensor, labels: Tensor, shard: Shard, epoch: int = 0, step: int = 0
    ) -> Tensor:
        """Takes one optimizer step, together with the other processes.

        `images` are this process's shard of the batch, uint8, (N, H, W, C). The numbers of epoch
        and step are the key of dropout on the CPU.

        Returns:
            Sums over the batch of loss, cross-entropy and correct predictions, and the number of
            processes that have received a signal to stop; shape (4,).

        Raises:
            DivergedError: The loss or a gradient is not finite. The weights are unchanged.
        """
        mode = Mode(True, (self.config.seed, epoch, step), shard, self.sum_)
        logits = self.lowered(images, mode)
        labels = labels.long()
        entropy = F.cross_entropy(logits, labels, reduction="sum") / shard.total
        share = shard.count / shard.total
        loss = sum((penalty(v) * share for v in self.regularized), entropy)
        gradients = torch.autograd.grad(loss, self.optimizer.parameters, allow_unused=True)
        with torch.no_grad():
            correct = (logits.argmax(1) == labels).sum() * (shard.batch / shard.total)
            numbers = [loss * shard.batch, entropy * shard.batch, correct, torch.zeros_like(loss)]
            if self.group.size > 1 and self.group.interruptions.number:
                numbers[3] += 1
            self.optimizer.gather(gradients, torch.stack(numbers))
            totals = self.group.sum_(self.optimizer.gathered)[-NUMBERS:].clone()
            self._refuse_nonfinite(totals, epoch, step)
            self.optimizer.update()
        return totals

    def _refuse_nonfinite(self, totals: Tensor, epoch: int, step: int) -> None:
        """Ends a run before a loss or gradient that is not finite reaches the weights.

        Reading a tensor waits for an accelerator. Gradients are therefore not read there, nor is
        the loss in a process that trains alone; `kerasnorm.training.loop` reads both after each
        epoch.
        """
        on_cpu = self.device.type == "cpu"
        if not on_cpu and self.group.size == 1:
            return
        loss = float(totals[0])
        # If the sum of the gradients is finite, so is each; if not, each is read.
        is_good = math.isfinite(loss)
        if is_good and not (on_cpu and not self.optimizer.gradient.sum().isfinite()):
            return
        variable = last_nonfinite(self.model.trainable_variables, self.optimizer.gradients())
        if variable is not None or not is_good:
            raise self.diverged(epoch, step, loss, variable)

    def end_epoch(self) -> None:
        """Replaces the moving statistics that differ between processes by their mean."""
        if self.group.size == 1:
            return
        with torch.no_grad(), self.group.connection():
            for layer in self.model.layers:
                if (
                    self.sum_ is not None
                    and isinstance(layer, keras.layers.BatchNormalization)
                    and not any(layer is other for other in self.lowered.foreign)
                ):
                    continue  # its statistics are those of the whole batch
                for variable in layer.non_trainable_variables:
                    if variable.value.is_floating_point():
                        self.group.sum_(variable.value).div_(self.group.size)

    def predict(self, images: Images) -> NDArray[np.float32]:
        """Returns the logits (N, classes) of raw images (N, H, W, C), a shard from each process."""
        if self.group.size == 1:
            return predict(self.lowered, images)
        shard = shard_of(len(images), self.group.rank, self.group.size)
        local = predict(self.lowered, select(images, shard.slice))
        logits = np.zeros((len(images), *local.shape[1:]), np.float32)
        logits[shard.slice] = local * np.float32(shard.batch / shard.total)
        with self.group.connection():
            return self.group.sum_(torch.from_numpy(logits).to(self.device)).cpu().numpy()


def penalty(variable: Any) -> Any:
    """Returns the regularization term of a variable; Keras's own makes tensors from numbers."""
    weight, regularizer = variable.value, variable.regularizer
    if type(regularizer) is not keras.regularizers.L1L2:
        return keras.ops.sum(regularizer(variable))  # as Keras sums it
    return (
        float(regularizer.l1) * weight.abs().sum() + float(regularizer.l2) * weight.square().sum()
    )


PREDICT_BATCH, ACCELERATED_BATCH = 250, 2000  # fits a core's cache; keeps a GPU busy


def predict(lowered: LoweredModel, images: Images) -> NDArray[np.float32]:
    """Returns the outputs of a lowered model for raw images (N, H, W, C)."""
    most = PREDICT_BATCH if lowered.device.type == "cpu" else ACCELERATED_BATCH
    size = at_once(images, most)
    with torch.no_grad():
        outputs = [
            lowered(torch.from_numpy(images[at : at + size]).to(lowered.device), Mode())
            for at in range(0, len(images), size)
        ]
        return torch.cat(outputs).float().cpu().numpy()


class TorchProcessGroup(ProcessGroup):
    """See `ProcessGroup`; the processes find each other by torchrun's environment."""

    def __init__(self, launch: Launch, device: torch.device) -> None:
        self.rank, self.size = launch.rank, launch.size
        self.device = device
        with self.connection():
            store, rank, size = next(rendezvous("env://"))
            # torchrun keeps one store over its restarts, with the addresses of ended processes.
            store = distributed.PrefixStore(f"start-{launch.restarts}", store)
            backend = "nccl" if device.type == "cuda" else "gloo"
            distributed.init_process_group(backend, store=store, rank=rank, world_size=size)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replaces a tensor by its sum over all processes."""
        distributed.all_reduce(tensor)
        return tensor

    def on_first(self, work: Callable[[], T]) -> T | None:
        """Does `work` in the first process and returns its result in all processes.

        Raises:
            KerasnormError: What `work` raised, in all processes.
        """
        box: list[Any] = [None, None]
        if self.is_first:
            try:
                box = [work(), None]
            except KerasnormError as error:
                box = [None, (type(error), str(error))]
        with self.connection():
            distributed.broadcast_object_list(box, 0, device=self.device)
        result, failure = box
        if failure is not None:
            kind, text = failure
            raise kind(text)
        return result

    def barrier(self) -> None:
        """Waits until all processes have called this."""
        with self.connection():
            self.sum_(torch.zeros(1, device=self.device))

    @contextmanager
    def connection(self) -> Iterator[None]:
        """Turns the end of a connection into an error that names the cause.

        Raises:
            LostProcessError: Another process has ended or does not answer.
        """
        try:
            yield
        except RuntimeError as error:
            words = ("gloo", "connection", "nccl", "peer", "socket", "timed out", "store")
            if not any(word in str(error).lower() for word in words):
                raise
            raise LostProcessError(str(error).splitlines()[0]) from error

    def leave(self) -> None:
        """Ends the connection to the others."""
        distributed.destroy_process_group()
