"""The native engine of TensorFlow: several steps a call, on a GPU compiled by XLA."""

from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from kerasnorm.config import TrainConfig
from kerasnorm.data.batches import Batches
from kerasnorm.engines.base import BatchListener
from kerasnorm.engines.diagnosis import diverged, gradient_of
from kerasnorm.engines.keras_engine import PortableEngine
from kerasnorm.engines.memory import keep_freed_memory
from kerasnorm.engines.tensorflow.lowering import LoweredModel
from kerasnorm.engines.totals import RunningMeans
from kerasnorm.errors import DivergedError
from kerasnorm.inspection.evaluation import Scores
from kerasnorm.keras_settings import stock_keras

STEPS_PER_CALL = 8
PREDICT_BATCH = 250
FINITE = -1  # in place of the number of a variable whose gradient is not finite


class TensorFlowEngine(PortableEngine):
    """Trains in graph mode; see `kerasnorm.engines.base.Engine`.

    The compiled Keras model and its optimizer own all state, as in the portable engine, so that
    callbacks and checkpoints are the same. Callbacks hear of a batch when the call that it
    belongs to has ended.

    Args:
        model: Functional.
        batches: Of a run.
        config: Of the same run.
        is_compiled: Whether XLA compiles a step; by default on a GPU. XLA's convolutions on a CPU
            are several times slower than oneDNN's.
    """

    def __init__(
        self,
        model: keras.Model,
        batches: Batches,
        config: TrainConfig,
        *,
        is_compiled: bool | None = None,
    ) -> None:
        super().__init__(model, batches, config)
        keep_freed_memory()
        on_gpu = bool(tf.config.get_visible_devices("GPU"))
        is_compiled = on_gpu if is_compiled is None else is_compiled
        # Several GPUs, where XLA has no part, drop what one does.
        self.lowered = LoweredModel(model, is_compiled=is_compiled, is_hashed=on_gpu)
        self.regularized = [v for v in model.trainable_variables if v.regularizer is not None]
        # One trace for every size of batch: another trace may differ in the last bit, and so would
        # a run that was resumed.
        shape, dropouts = batches.split.images.shape[1:], len(self.lowered.drops)
        drawn, ends = tf.TensorSpec([None], tf.int32), tf.TensorSpec([dropouts + 1], tf.int32)
        one = [tf.TensorSpec([None, *shape], tf.uint8), tf.TensorSpec([None], tf.int32)]
        several = [tf.TensorSpec([None, *spec.shape], spec.dtype) for spec in (*one, ends)]
        plain = tf.function(self._step, input_signature=[*one, drawn, ends])
        compiled = tf.function(self._step, jit_compile=True) if is_compiled else None

        def repeated(step: Any) -> Any:
            return tf.function(
                partial(self._steps, step), input_signature=[*several[:2], drawn, several[2]]
            )

        self.steps = repeated(plain)
        self.whole_steps = repeated(compiled) if compiled else self.steps
        self.forward = inference(model)

    @stock_keras
    def train_epoch(self, epoch: int, listener: BatchListener) -> Scores:
        """Trains on every batch of an epoch, counted from 0."""
        self.seed(epoch)
        self.model.stop_training = False
        order, sums = self.batches.order(epoch), np.zeros(3)
        means = RunningMeans(sums.tolist, 0)
        for steps in self._calls():
            pairs = [self.batches.batch(epoch, step, order) for step in steps]
            images, labels = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
            keys = [(self.config.seed, epoch, step) for step in steps]
            drawn, ends = self.lowered.draw(keys, labels.shape[1])
            is_whole = labels.shape[1] == self.batches.batch_size
            take = self.whole_steps if is_whole else self.steps
            added = take(images, labels, drawn, ends).numpy()
            for step, numbers in zip(steps, added, strict=True):
                listener.on_batch_begin(step)
                if numbers[3] != FINITE:
                    raise self._diverged(numbers, epoch, step)
                sums = sums + numbers[:3]
                means = RunningMeans(sums.tolist, means.count + labels.shape[1])
                listener.on_batch_end(step, means)
            if self.model.stop_training:
                break
        return means.scores()

    def _diverged(self, numbers: NDArray[np.float32], epoch: int, step: int) -> DivergedError:
        if not np.isfinite(numbers[0]):
            return self.diverged(float(numbers[0]), epoch, step)
        place = gradient_of(self.model.trainable_variables[int(numbers[3])])
        return diverged(self, "gradient is not finite", epoch, step, place)

    def _calls(self) -> list[range]:
        """Returns which steps of an epoch each call takes; a partial batch is alone."""
        whole = len(self.batches.split) // self.batches.batch_size
        starts = range(0, whole, STEPS_PER_CALL)
        calls = [range(start, min(start + STEPS_PER_CALL, whole)) for start in starts]
        return calls if whole == self.batches.steps else [*calls, range(whole, whole + 1)]

    def _steps(self, take: Any, images: Any, labels: Any, drawn: Any, ends: Any) -> Any:
        """Takes a step on each of several batches.

        Args:
            take: Takes one; XLA compiles it for the size of a whole batch alone.
            images: uint8, (steps, N, H, W, C).
            labels: Class indices, (steps, N).
            drawn: What the dropouts of all steps are drawn from, int32.
            ends: Where each step's parts of it are, int32 (steps, dropouts + 1).

        Returns:
            Sums of loss, cross-entropy and right answers of each step, and the last variable
            whose gradient is not finite, `FINITE` if all are; float32 (steps, 4). Steps behind
            one that is not finite are not taken.
        """
        count = tf.shape(images)[0]
        sums = tf.TensorArray(tf.float32, size=count, element_shape=(4,))
        is_finite = tf.constant(True)
        for step in tf.range(count):
            numbers = tf.zeros(4)
            if is_finite:
                numbers = take(images[step], labels[step], drawn, ends[step])
            is_finite = is_finite and numbers[3] == FINITE
            sums = sums.write(step, numbers)
        return sums.stack()

    def _step(self, images: Any, labels: Any, drawn: Any, ends: Any) -> Any:
        variables = self.model.trainable_variables
        with tf.GradientTape() as tape:
            logits = self.lowered(images, drawn, ends)
            entropy = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
            loss = entropy + sum(v.regularizer(v.value) for v in self.regularized)
        gradients = tape.gradient(loss, [variable.value for variable in variables])
        bad = last_nonfinite(loss, gradients)

        def update() -> Any:
            self.model.optimizer.apply_gradients(zip(gradients, variables, strict=True))
            return bad

        # No update along what is not finite: the weights stay as they are for the diagnosis.
        tf.cond(bad == FINITE, update, lambda: bad)
        guesses = tf.argmax(logits, 1, output_type=labels.dtype)
        right = tf.reduce_sum(tf.cast(guesses == labels, loss.dtype))
        count = tf.cast(tf.size(labels), loss.dtype)
        numbers = [loss * count, entropy * count, right, tf.cast(bad, loss.dtype)]
        return tf.cast(tf.stack(numbers), tf.float32)

    @stock_keras
    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Returns the logits (N, classes) of raw images (N, H, W, C)."""
        return predict(self.forward, images)


def last_nonfinite(loss: Any, gradients: list[Any]) -> Any:
    """Returns the number of the last gradient that is not finite, int32; `FINITE` if all are."""
    places = tf.range(len(gradients), dtype=tf.int32)
    is_bad = tf.stack([~tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients])
    is_bad |= ~tf.math.is_finite(loss)
    return tf.reduce_max(tf.where(is_bad, places, FINITE))


def inference(model: Any) -> Any:
    """Returns a `tf.function` that computes a Keras model's outputs."""
    spec = tf.TensorSpec([None, *model.input_shape[1:]], tf.float32)
    return tf.function(lambda x: model(x, training=False), input_signature=[spec])


def predict(forward: Any, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Returns the outputs of a `tf.function` for raw images (N, H, W, C)."""
    outputs = [
        forward(tf.cast(images[at : at + PREDICT_BATCH], tf.float32)).numpy()
        for at in range(0, len(images), PREDICT_BATCH)
    ]
    return np.concatenate(outputs).astype(np.float32)
