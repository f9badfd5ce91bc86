"""Which engine trains a model and which one answers for it, by backend and config."""

from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from kerasnorm.analysis.evaluate import as_logits
from kerasnorm.analysis.evaluate import predict as stock_predict
from kerasnorm.config import TrainConfig
from kerasnorm.data.batches import Batches
from kerasnorm.engines.base import Engine
from kerasnorm.engines.portable import PortableEngine
from kerasnorm.errors import ConfigError


def make(model: keras.Model, batches: Batches, config: TrainConfig) -> Engine:
    """Returns the engine that a config asks for; native on jax is the portable one."""
    backend = keras.backend.backend()
    if config.engine == "native" and backend == "torch":
        from kerasnorm.engines.torch_engine import TorchEngine

        return TorchEngine(model, batches, config)
    if config.engine == "native" and backend == "tensorflow":
        from kerasnorm.engines.tensorflow_engine import TensorFlowEngine

        return TensorFlowEngine(model, batches, config)
    return PortableEngine(model, batches, config)


def predict(model: Any, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Returns the logits (N, classes) that a Keras model gives for raw images (N, H, W, C).

    As `kerasnorm.analysis.evaluate.predict`, on the native engine where it knows the model.
    """
    backend = keras.backend.backend()
    if backend == "torch":
        from kerasnorm.engines import torch_engine, torch_lowering

        try:
            lowered = torch_lowering.LoweredModel(model)
        except ConfigError:  # a subclassed model has no graph to lower
            return stock_predict(model, images)
        return as_logits(model, torch_engine.predict(lowered, images))
    if backend == "tensorflow":
        from kerasnorm.engines import tensorflow_engine

        forward = tensorflow_engine.inference(model)
        return as_logits(model, tensorflow_engine.predict(forward, images))
    return stock_predict(model, images)
