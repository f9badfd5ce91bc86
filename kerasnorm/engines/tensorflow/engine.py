"""The native engine of TensorFlow, several steps per call, on a GPU compiled by XLA; its groups."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import keras
import numpy as np
import tensorflow as tf
from keras import ops
from numpy.typing import NDArray

from kerasnorm.config import TrainConfig
from kerasnorm.data.batches import Batches
from kerasnorm.data.stored import Images
from kerasnorm.engines.base import NativeEngine, StepResult
from kerasnorm.engines.tensorflow.lowering import LoweredModel
from kerasnorm.errors import LostProcessError
from kerasnorm.inspection.evaluation import at_once
from kerasnorm.keras_settings import stock_keras
from kerasnorm.process_group import Launch, ProcessGroup, Shard, shard_of

T = TypeVar("T")
STEPS_PER_CALL = 8
PREDICT_BATCH = 250
FINITE = -1  # in place of the number of a variable whose gradient is not finite


class TensorFlowEngine(NativeEngine):
    """Trains in graph mode; see `kerasnorm.engines.base.Engine`.

    A process with one device takes several steps per call, and notifies callbacks of them after the
    call; one step if it `waits_for_callbacks`. Several devices take a shard of every batch each,
    one step per call as a plain graph, because XLA and collective operations cannot be combined.
    Their model and its optimizer must be made in the scope of the group's strategy. XLA compiles a
    step if `is_compiled`, by default on one GPU: its convolutions on a CPU are several times slower
    than oneDNN's.
    """

    def __init__(
        self,
        model: keras.Model,
        batches: Batches,
        config: TrainConfig,
        group: ProcessGroup | None = None,
        *,
        is_compiled: bool | None = None,
    ) -> None:
        super().__init__(model, batches, config, group)
        self.strategy = self.group.strategy
        if self.strategy is not None:
            for layer in self._layers():
                if isinstance(layer, keras.layers.BatchNormalization):
                    layer.synchronized = config.bn_sync == "on"
        on_gpu = bool(tf.config.get_visible_devices("GPU"))
        if is_compiled is None:
            is_compiled = on_gpu and self.strategy is None
        # Several GPUs drop the same values as one, although XLA does not compile their step.
        self.lowering = partial(LoweredModel, model, is_compiled=is_compiled, is_hashed=on_gpu)
        self.is_fused &= not on_gpu
        self.is_compiled = is_compiled
        self.plan()
        self.forward = inference(model)

    def plan(self) -> None:
        """Traces the steps anew at their next call; see `Engine.plan`."""
        self.lowered = self.lowering(is_fused=self.is_fused)
        self.fused_kernels = self.lowered.fused_kernels
        variables = self.model.trainable_variables
        self.regularized = [v for v in variables if v.regularizer is not None]
        # One trace serves every batch size: another trace might differ in the last bit, and with it
        # a resumed run.
        shape, dropouts = self.batches.split.images.shape[1:], len(self.lowered.drops)
        drawn, ends = tf.TensorSpec([None], tf.int32), tf.TensorSpec([dropouts + 1], tf.int32)
        one = [tf.TensorSpec([None, *shape], tf.uint8), tf.TensorSpec([None], tf.int32)]
        several = [tf.TensorSpec([None, *spec.shape], spec.dtype) for spec in (*one, ends)]
        plain = tf.function(self._step, input_signature=[*one, drawn, ends])
        compiled = tf.function(self._step, jit_compile=True) if self.is_compiled else None

        def repeated(step: Any) -> Any:
            return tf.function(
                partial(self._steps, step), input_signature=[*several[:2], drawn, several[2]]
            )

        self.steps = repeated(plain)
        self.whole_steps = repeated(compiled) if compiled else self.steps
        self.shared_step = tf.function(self._shared_step, reduce_retracing=True)

    def take_steps(self, epoch: int) -> Iterator[StepResult]:
        """Takes the optimizer steps of an epoch; the first result of a call takes all its steps."""
        order = self.batches.order(epoch)
        for steps in self._calls():
            pairs = [self.batches.batch(epoch, step, order) for step in steps]
            images, labels = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
            count = labels.shape[1]
            keys = [(self.config.seed, epoch, step) for step in steps]
            drawn, ends = self.lowered.draw(keys, count)
            if self.strategy is None:
                take = self.whole_steps if count == self.batches.batch_size else self.steps
                rows = take(images, labels, drawn, ends).numpy()
            else:
                shards = self._shards(images[0], labels[0])
                rows = self.shared_step(*shards, tf.constant(drawn), tf.constant(ends[0])).numpy()
            for step, (*sums, bad, stop) in zip(steps, rows.reshape(-1, 5), strict=True):
                if bad != FINITE:
                    variable = self.model.trainable_variables[int(bad)]
                    raise self.diverged(epoch, step, float(sums[0]), variable)
                yield StepResult(np.array(sums, np.float64), count, stop > 0, step == steps[-1])

    def _calls(self) -> list[range]:
        """Returns the steps that each call of an epoch takes; a partial batch has its own call."""
        is_single = self.waits_for_callbacks or self.strategy is not None
        several = 1 if is_single else STEPS_PER_CALL
        whole = len(self.batches.split) // self.batches.batch_size
        starts = range(0, whole, several)
        calls = [range(start, min(start + several, whole)) for start in starts]
        return calls if whole == self.batches.steps else [*calls, range(whole, whole + 1)]

    def _shards(self, images: NDArray[np.uint8], labels: NDArray[np.int32]) -> tuple[Any, ...]:
        """Returns each device's images, labels, and its start, batch, total and stop request."""
        size, stop = self.strategy.num_replicas_in_sync, self.group.interruptions.number > 0

        def give(what: Callable[[Shard], Any]) -> Any:
            return self.strategy.experimental_distribute_values_from_function(
                lambda context: tf.constant(
                    what(shard_of(len(labels), context.replica_id_in_sync_group, size))
                )
            )

        return (
            give(lambda shard: images[shard.slice]),
            give(lambda shard: labels[shard.slice]),
            give(lambda shard: np.array([shard.start, shard.batch, shard.total, stop], np.int32)),
        )

    def _shared_step(self, images: Any, labels: Any, facts: Any, drawn: Any, ends: Any) -> Any:
        """Takes one step on all devices, and returns what `_step` does in this process."""
        numbers = self.strategy.run(self._step, args=(images, labels, drawn, ends, facts))
        return self.strategy.experimental_local_results(numbers)[0]

    def _steps(self, take: Any, images: Any, labels: Any, drawn: Any, ends: Any) -> Any:
        """Takes a step on each of several batches; no step follows one that is not finite.

        Args:
            take: Takes one step; XLA compiles it for the size of a whole batch alone.
            images: uint8, (steps, N, H, W, C).
            labels: Class indices, (steps, N).
            drawn: Random numbers of all dropouts and steps, see `LoweredModel.draw`, int32.
            ends: Where those of each step and dropout start and end, int32 (steps, dropouts + 1).

        Returns:
            The result of `_step` for each step; float32 (steps, 5).
        """
        count = tf.shape(images)[0]
        rows = tf.TensorArray(tf.float32, size=count, element_shape=(5,))
        is_finite = tf.constant(True)
        for step in tf.range(count):
            numbers = tf.zeros(5)
            if is_finite:
                numbers = take(images[step], labels[step], drawn, ends[step])
            is_finite = is_finite and numbers[3] == FINITE
            rows = rows.write(step, numbers)
        return rows.stack()

    def _step(self, images: Any, labels: Any, drawn: Any, ends: Any, facts: Any = None) -> Any:
        """Takes one step on this device's shard of a batch, together with the other devices.

        Args:
            images: uint8, (N, H, W, C).
            labels: Class indices, (N,).
            drawn: Random numbers of the dropouts for the whole batch, int32.
            ends: Where those of each dropout start and end, int32 (dropouts + 1).
            facts: First image of the shard, images in the batch, images in all shards, and
                whether this process is to stop; int32 (4,). None for the whole batch.

        Returns:
            Sums over the batch of loss, cross-entropy and correct predictions, the number of the
            last variable whose gradient is not finite (`FINITE` if all are), and the number of
            devices that are to stop; float32 (5,).
        """
        variables = self.model.trainable_variables
        count = tf.size(labels)
        start, batch, total, stop = (0, count, count, 0) if facts is None else tf.unstack(facts)
        with tf.GradientTape() as tape:
            logits = self.lowered(images, drawn, ends, start)
            entropies = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            kind = entropies.dtype
            batch, total = tf.cast(batch, kind), tf.cast(total, kind)
            entropy = tf.reduce_sum(entropies) / total
            share = tf.cast(count, kind) / total
            loss = entropy + share * sum(ops.sum(v.regularizer(v)) for v in self.regularized)
        gradients = tape.gradient(loss, [variable.value for variable in variables])
        guesses = tf.argmax(logits, 1, output_type=labels.dtype)
        correct = tf.reduce_sum(tf.cast(guesses == labels, kind)) * batch / total
        bad = last_nonfinite(loss, gradients)
        marks = tf.cast(bad != FINITE, kind), tf.cast(stop, kind)
        summed = self.group.sum_(tf.stack([loss * batch, entropy * batch, correct, *marks]))
        loss, entropy, correct, spoilt, stop = tf.unstack(summed)
        is_finite = spoilt == 0
        self._update(gradients, is_finite)
        bad = tf.where(is_finite, FINITE, tf.maximum(bad, 0))
        numbers = [loss, entropy, correct, tf.cast(bad, kind), stop]
        return tf.cast(tf.stack(numbers), tf.float32)

    def _update(self, gradients: list[Any], is_finite: Any) -> None:
        """Updates the weights if all gradients are finite; otherwise the diagnosis needs them."""
        variables = self.model.trainable_variables

        def update(gradients: list[Any]) -> Any:
            self.model.optimizer.apply_gradients(zip(gradients, variables, strict=True))
            return tf.constant(0)

        if self.strategy is None:
            tf.cond(is_finite, lambda: update(gradients), lambda: tf.constant(0))
        else:  # all devices must reach a collective operation, so it is in no branch
            update(
                [None if g is None else tf.where(is_finite, g, tf.zeros_like(g)) for g in gradients]
            )

    @stock_keras
    def predict(self, images: Images) -> NDArray[np.float32]:
        """Returns the logits (N, classes) of raw images (N, H, W, C)."""
        return predict(self.forward, images)


def last_nonfinite(loss: Any, gradients: list[Any]) -> Any:
    """Returns the number of the last gradient that is not finite, int32; `FINITE` if all are.

    A gradient is None where the loss does not depend on it.
    """
    places = tf.range(len(gradients), dtype=tf.int32)
    is_bad = tf.stack([g is not None and ~tf.reduce_all(tf.math.is_finite(g)) for g in gradients])
    is_bad |= ~tf.math.is_finite(loss)
    return tf.reduce_max(tf.where(is_bad, places, FINITE))


def inference(model: Any) -> Any:
    """Returns a `tf.function` that computes a Keras model's outputs."""
    spec = tf.TensorSpec([None, *model.input_shape[1:]], tf.float32)
    return tf.function(lambda x: model(x, training=False), input_signature=[spec])


def predict(forward: Any, images: Images) -> NDArray[np.float32]:
    """Returns the outputs of a `tf.function` for raw images (N, H, W, C)."""
    size = at_once(images, PREDICT_BATCH)
    outputs = [
        forward(tf.cast(images[at : at + size], tf.float32)).numpy()
        for at in range(0, len(images), size)
    ]
    return np.concatenate(outputs).astype(np.float32)


class TensorFlowProcessGroup(ProcessGroup):
    """See `ProcessGroup`; TensorFlow requires its strategy to be made before any tensor.

    `MirroredStrategy` connects the devices of one process, `MultiWorkerMirroredStrategy` several
    processes.
    """

    def __init__(self, launch: Launch) -> None:
        self.rank, self.size = launch.rank, launch.size
        kind = tf.distribute
        several = kind.MultiWorkerMirroredStrategy if launch.size > 1 else kind.MirroredStrategy
        self.strategy = several()

    def sum_(self, tensor: Any) -> Any:
        """Returns the sum of a tensor over all devices of all processes; inside a replica."""
        context = tf.distribute.get_replica_context()
        return context.all_reduce(tf.distribute.ReduceOp.SUM, tensor)

    def on_first(self, work: Callable[[], T]) -> T | None:
        """Does `work` in the first process while the others wait; they get None."""
        result = work() if self.is_first else None
        self.barrier()
        return result

    def barrier(self) -> None:
        """Waits until all processes have called this."""
        if self.size > 1:
            with self.connection():
                tf.function(lambda: self.strategy.run(lambda: self.sum_(tf.ones(()))))()

    @contextmanager
    def connection(self) -> Iterator[None]:
        """Turns a broken collective operation into an error that names the cause.

        Raises:
            LostProcessError: Another process has ended or does not answer.
        """
        kinds = tf.errors
        try:
            yield
        except (kinds.UnavailableError, kinds.AbortedError, kinds.DeadlineExceededError) as error:
            raise LostProcessError(type(error).__name__) from error
