"""The native engine of TensorFlow: several steps a call, each one program compiled by XLA."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from kerasnorm.analysis.evaluate import Scores
from kerasnorm.config import TrainConfig
from kerasnorm.data.batches import Batches
from kerasnorm.engines.base import BatchListener
from kerasnorm.engines.portable import PortableEngine
from kerasnorm.engines.tensorflow_lowering import LoweredModel
from kerasnorm.engines.totals import RunningMeans, check_finite

STEPS_PER_CALL = 8
# Input values in a run from which compiling, some ten seconds, pays for itself.
WORTH_COMPILING = 1e8
PREDICT_BATCH = 250


class TensorFlowEngine(PortableEngine):
    """Trains in graph mode; see `kerasnorm.engines.base.Engine`.

    The compiled Keras model and its optimizer own all state, as in the portable engine, so that
    callbacks and checkpoints are the same. Callbacks hear of a batch when the call that it
    belongs to has ended.
    """

    def __init__(self, model: keras.Model, batches: Batches, config: TrainConfig) -> None:
        super().__init__(model, batches, config)
        self.lowered = LoweredModel(model)
        self.regularized = [v for v in model.trainable_variables if v.regularizer is not None]
        is_compiled = config.epochs * batches.split.images.size >= WORTH_COMPILING
        batch = [
            tf.TensorSpec([None, *batches.split.images.shape[1:]], tf.uint8),
            tf.TensorSpec([None], tf.int32),
            tf.TensorSpec([len(self.lowered.dropouts), 2], tf.int32),
        ]
        self.plain_step = tf.function(self._step, input_signature=batch)
        self.step = tf.function(self._step, jit_compile=True) if is_compiled else self.plain_step
        self.steps = tf.function(self._steps, reduce_retracing=True)
        self.forward = inference(model)

    def train_epoch(self, epoch: int, listener: BatchListener) -> Scores:
        """Trains on every batch of an epoch, counted from 0."""
        self.seed(epoch)
        self.model.stop_training = False
        order, sums = self.batches.order(epoch), np.zeros(3)
        means = RunningMeans(sums.tolist, 0)
        for steps in self._calls():
            pairs = [self.batches.batch(epoch, step, order) for step in steps]
            images, labels = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
            keys = np.stack([self.lowered.keys(self.config.seed, epoch, step) for step in steps])
            is_whole = labels.shape[1] == self.batches.batch_size
            added = self.steps(images, labels, keys, is_whole).numpy()
            for step, numbers in zip(steps, added, strict=True):
                listener.on_batch_begin(step)
                sums = sums + numbers
                means = RunningMeans(sums.tolist, means.count + labels.shape[1])
                check_finite(means["loss"], epoch, step, self.config)
                listener.on_batch_end(step, means)
            if self.model.stop_training:
                break
        return means.scores()

    def _calls(self) -> list[range]:
        """Returns which steps of an epoch each call takes; a partial batch is alone."""
        whole = len(self.batches.split) // self.batches.batch_size
        starts = range(0, whole, STEPS_PER_CALL)
        calls = [range(start, min(start + STEPS_PER_CALL, whole)) for start in starts]
        return calls if whole == self.batches.steps else [*calls, range(whole, whole + 1)]

    def _steps(self, images: Any, labels: Any, keys: Any, is_whole: bool) -> Any:
        """Takes a step on each of several batches.

        Args:
            images: uint8, (steps, N, H, W, C).
            labels: Class indices, (steps, N).
            keys: int32, (steps, dropouts, 2).
            is_whole: Whether the batches have the usual size, which XLA compiles for.

        Returns:
            Sums of loss, cross-entropy and right answers of each step, float32 (steps, 3).
        """
        count = tf.shape(images)[0]
        sums = tf.TensorArray(tf.float32, size=count, element_shape=(3,))
        take = self.step if is_whole else self.plain_step
        for step in tf.range(count):
            sums = sums.write(step, take(images[step], labels[step], keys[step]))
        return sums.stack()

    def _step(self, images: Any, labels: Any, keys: Any) -> Any:
        variables = self.model.trainable_variables
        with tf.GradientTape() as tape:
            logits = self.lowered(tf.cast(images, tf.float32), keys)
            entropy = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
            loss = entropy + sum(v.regularizer(v.value) for v in self.regularized)
        gradients = tape.gradient(loss, [variable.value for variable in variables])
        self.model.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        guesses = tf.argmax(logits, 1, output_type=labels.dtype)
        right = tf.reduce_sum(tf.cast(guesses == labels, loss.dtype))
        count = tf.cast(tf.size(labels), loss.dtype)
        return tf.cast(tf.stack([loss * count, entropy * count, right]), tf.float32)

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Returns the logits (N, classes) of raw images (N, H, W, C)."""
        return predict(self.forward, images)


def inference(model: Any) -> Any:
    """Returns a `tf.function` that computes a Keras model's outputs."""
    return tf.function(lambda x: model(x, training=False), reduce_retracing=True)


def predict(forward: Any, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Returns the outputs of a `tf.function` for raw images (N, H, W, C)."""
    outputs = [
        forward(tf.cast(images[at : at + PREDICT_BATCH], tf.float32)).numpy()
        for at in range(0, len(images), PREDICT_BATCH)
    ]
    return np.concatenate(outputs).astype(np.float32)
