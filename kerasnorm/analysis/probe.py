"""Loss and gradient of a model at any weights, by the native engines' forward pass."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from kerasnorm.data.stored import Images
from kerasnorm.errors import ConfigError
from kerasnorm.inspection.evaluation import Scores, score
from kerasnorm.inspection.output_graph import model_logits
from kerasnorm.keras_settings import stock_keras

Weights = list[NDArray[np.float32]]


class Probe:
    """Measures a functional model on torch or TensorFlow, and leaves it unchanged.

    A training pass normalizes by the batch's own statistics and draws the same dropout each time;
    the moving statistics that it changes are restored. The model takes raw images (N, H, W, C) and
    returns logits (N, classes).

    Raises:
        ConfigError: Keras runs on another backend.
    """

    def __init__(self, model: keras.Model) -> None:
        backend = keras.backend.backend()
        makers = {"torch": _torch_passes, "tensorflow": _tensorflow_passes}
        if backend not in makers:
            raise ConfigError(
                f"Expected the torch or the TensorFlow backend. Received: {backend}. "
                "Use --backend torch."
            )
        self.model = model
        self._loss_and_gradient, self._predict = makers[backend](model)

    def weights(self) -> Weights:
        """Returns copies of the trainable variables."""
        return _copies(self.model.trainable_variables)

    def assign(self, weights: Sequence[NDArray[Any]]) -> None:
        """Sets the trainable variables."""
        _assign(self.model.trainable_variables, weights)

    @stock_keras
    def gradient(self, images: Images, labels: NDArray[np.int32]) -> tuple[float, Weights]:
        """Returns the mean cross-entropy of a training pass, in nats, and its gradient."""
        variables = self.model.non_trainable_variables
        kept = _copies(variables)
        found = self._loss_and_gradient(np.asarray(images), labels)
        _assign(variables, kept)
        return found

    @stock_keras
    def score(self, images: Images, labels: NDArray[np.int32]) -> Scores:
        """Returns loss and accuracy of an inference pass, measured as `kerasnorm evaluate` does."""
        return score(model_logits(self.model, self._predict, images), labels)


def _copies(variables: Sequence[keras.Variable]) -> Weights:
    return [keras.ops.convert_to_numpy(variable.value).copy() for variable in variables]


def _assign(variables: Sequence[keras.Variable], arrays: Sequence[NDArray[Any]]) -> None:
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)


LossAndGradient = Callable[[NDArray[Any], NDArray[Any]], tuple[float, Weights]]
Predict = Callable[[Images], NDArray[np.float32]]


def _torch_passes(model: keras.Model) -> tuple[LossAndGradient, Predict]:
    import torch

    from kerasnorm.engines.torch import engine as torch_engine
    from kerasnorm.engines.torch.layers import Mode
    from kerasnorm.engines.torch.lowering import LoweredModel

    lowered = LoweredModel(model)
    parameters = [variable.value for variable in model.trainable_variables]

    def loss_and_gradient(images: NDArray[Any], labels: NDArray[Any]) -> tuple[float, Weights]:
        logits = lowered(torch.from_numpy(images).to(lowered.device), Mode(training=True))
        wanted = torch.from_numpy(labels).long().to(lowered.device)
        loss = torch.nn.functional.cross_entropy(logits, wanted)
        gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
        return float(loss.detach()), [gradient.cpu().numpy().copy() for gradient in gradients]

    return loss_and_gradient, lambda images: torch_engine.predict(lowered, images)


def _tensorflow_passes(model: keras.Model) -> tuple[LossAndGradient, Predict]:
    import tensorflow as tf

    from kerasnorm.engines.tensorflow import engine as tensorflow_engine
    from kerasnorm.engines.tensorflow.lowering import LoweredModel

    lowered = LoweredModel(model, is_compiled=False)
    forward = tensorflow_engine.inference(model)
    values = [variable.value for variable in model.trainable_variables]

    @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
    def passes(images: Any, labels: Any, drawn: Any, ends: Any) -> Any:
        with tf.GradientTape() as tape:
            logits = lowered(images, drawn, ends)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        return loss, tape.gradient(loss, values, unconnected_gradients="zero")

    def loss_and_gradient(images: NDArray[Any], labels: NDArray[Any]) -> tuple[float, Weights]:
        drawn, ends = lowered.draw([(0, 0, 0)], len(images))
        loss, gradients = passes(images, labels, drawn, ends[0])
        return float(loss), [gradient.numpy() for gradient in gradients]

    return loss_and_gradient, lambda images: tensorflow_engine.predict(forward, images)
