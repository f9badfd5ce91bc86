"""The native engine of TensorFlow on several devices, or several workers, each with its shard.

`MirroredStrategy` between the devices of one process, `MultiWorkerMirroredStrategy` between the
processes that TF_CONFIG names. Steps are plain graphs here: XLA and collectives do not go together.
The wish to stop travels with the losses, so that all processes stop at the same step.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from kerasnorm.config import TrainConfig
from kerasnorm.data.batches import Batches
from kerasnorm.engines.base import BatchListener
from kerasnorm.engines.tensorflow.engine import FINITE, TensorFlowEngine, last_nonfinite
from kerasnorm.engines.totals import RunningMeans
from kerasnorm.errors import LostProcessError
from kerasnorm.inspection.evaluation import Scores
from kerasnorm.keras_settings import stock_keras
from kerasnorm.training.process_group import Launch, ProcessGroup, shard_of

T = TypeVar("T")


class TensorFlowProcessGroup(ProcessGroup):
    """Makes the strategy; before any tensor, as TensorFlow wants it. See `ProcessGroup`."""

    def __init__(self, launch: Launch) -> None:
        self.rank, self.size = launch.rank, launch.size
        kind = tf.distribute
        several = kind.MultiWorkerMirroredStrategy if launch.size > 1 else kind.MirroredStrategy
        self.strategy = several()

    def on_first(self, work: Callable[[], T]) -> T | None:
        """Does `work` in the first process, before the others go on; they get None."""
        result = work() if self.is_first else None
        self.barrier()
        return result

    def barrier(self) -> None:
        """Waits until all processes are here."""
        if self.size > 1:
            with lost():
                tf.function(lambda: self.strategy.run(_meet))()


@contextmanager
def lost() -> Iterator[None]:
    """Turns a broken collective operation into an error that says what has happened.

    Raises:
        LostProcessError: Another process has ended or does not answer.
    """
    kinds = tf.errors
    try:
        yield
    except (kinds.UnavailableError, kinds.AbortedError, kinds.DeadlineExceededError) as error:
        raise LostProcessError(type(error).__name__) from error


def _meet() -> Any:
    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.ones(()))


class DistributedEngine(TensorFlowEngine):
    """Trains on a shard of every batch on each device; see `kerasnorm.engines.base.Engine`.

    The model and its optimizer must have been made in the strategy's scope.
    """

    def __init__(
        self, model: keras.Model, batches: Batches, config: TrainConfig, group: ProcessGroup
    ) -> None:
        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.synchronized = config.bn_sync == "on"
        super().__init__(model, batches, config, is_compiled=False)
        self.group, self.strategy = group, group.strategy
        self.shared = tf.function(self._shared, reduce_retracing=True)

    @stock_keras
    def train_epoch(self, epoch: int, listener: BatchListener) -> Scores:
        """Trains on every batch of an epoch, counted from 0."""
        self.seed(epoch)
        self.model.stop_training = False
        order, sums = self.batches.order(epoch), np.zeros(3)
        means = RunningMeans(sums.tolist, 0)
        for step in range(self.batches.steps):
            listener.on_batch_begin(step)
            images, labels = self.batches.batch(epoch, step, order)
            drawn, ends = self.lowered.draw([(self.config.seed, epoch, step)], len(labels))
            shards = self._parts(images, labels)
            with lost():
                told = self.shared(*shards, tf.constant(drawn), tf.constant(ends[0])).numpy()
            *numbers, stopped = told
            if stopped:
                self.group.interruptions.agree()
            if numbers[3] != FINITE:
                raise self._diverged(numbers, epoch, step)
            sums += numbers[:3]
            means = RunningMeans(sums.tolist, means.count + len(labels))
            listener.on_batch_end(step, means)
            if self.model.stop_training:
                break
        return means.scores()

    def _parts(self, images: NDArray[np.uint8], labels: NDArray[np.int32]) -> tuple[Any, ...]:
        """Returns each device's images, labels and facts: its start, batch, total, wish to stop."""
        size, stop = self.strategy.num_replicas_in_sync, self.group.interruptions.number > 0

        def give(what: Callable[[Any], Any]) -> Any:
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

    def _shared(self, *args: Any) -> Any:
        """Takes one step on all devices.

        Returns:
            Its numbers as in `_steps`, and how many devices' processes wish to stop; float32 (5,).
        """
        numbers = self.strategy.run(self._part_step, args=args)
        return self.strategy.experimental_local_results(numbers)[0]

    def _part_step(self, images: Any, labels: Any, facts: Any, drawn: Any, ends: Any) -> Any:
        variables = self.model.trainable_variables
        start, batch, total, stop = tf.unstack(facts)
        with tf.GradientTape() as tape:
            logits = self.lowered(images, drawn, ends, start)
            entropies = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            share = tf.cast(tf.size(labels), entropies.dtype) / tf.cast(total, entropies.dtype)
            entropy = tf.reduce_sum(entropies) / tf.cast(total, entropies.dtype)
            loss = entropy + share * sum(v.regularizer(v.value) for v in self.regularized)
        gradients = tape.gradient(loss, [variable.value for variable in variables])
        context = tf.distribute.get_replica_context()
        guesses = tf.argmax(logits, 1, output_type=labels.dtype)
        right = tf.reduce_sum(tf.cast(guesses == labels, loss.dtype))
        right = right * tf.cast(batch, loss.dtype) / tf.cast(total, loss.dtype)
        bad = last_nonfinite(loss, gradients)
        # Where one device's gradient is not finite, none is applied: all are set to zero first.
        spoilt = tf.cast(bad != FINITE, loss.dtype)
        numbers = [loss, entropy, right, spoilt, tf.cast(stop, loss.dtype)]
        loss, entropy, right, spoilt, stop = context.all_reduce(tf.distribute.ReduceOp.SUM, numbers)
        keep = tf.cast(spoilt == 0, loss.dtype)
        safe = [tf.where(keep > 0, g, tf.zeros_like(g)) for g in gradients]
        self.model.optimizer.apply_gradients(zip(safe, variables, strict=True))
        count = tf.cast(batch, loss.dtype)
        mark = tf.where(
            keep > 0, tf.cast(FINITE, loss.dtype), tf.cast(tf.maximum(bad, 0), loss.dtype)
        )
        return tf.cast(tf.stack([loss * count, entropy * count, right, mark, stop]), tf.float32)
