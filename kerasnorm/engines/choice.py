"""The choice of the engine that trains a model, and of the one that predicts with it."""

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from kerasnorm.config import TrainConfig
from kerasnorm.data.batches import Batches
from kerasnorm.data.stored import Images
from kerasnorm.engines.base import Engine
from kerasnorm.engines.keras_engine import KerasEngine
from kerasnorm.errors import (
    ConfigError,
    KerasnormError,
    calling_layers,
    expect,
    is_out_of_memory,
)
from kerasnorm.inspection import evaluation
from kerasnorm.process_group import Launch, ProcessGroup

logger = logging.getLogger(__name__)

LAUNCHERS = (("torchrun", "torch"), ("TF_CONFIG", "tensorflow"))


def make(
    model: keras.Model, batches: Batches, config: TrainConfig, group: ProcessGroup | None = None
) -> Engine:
    """Returns the engine that a config asks for.

    Keras's own engine replaces the native one on jax, and for a model that the native one would
    train wrongly. By default this process trains alone.

    Raises:
        ConfigError: Several processes or devices are to train, which this engine cannot; or a
            layer of the model raises an error when it is called.
    """
    backend = keras.backend.backend()
    is_native = config.engine == "native" and backend in ("torch", "tensorflow")
    losses = _losses_of_layers(model, batches)
    reason = _not_native(model, losses) if is_native else None
    if group is not None and (group.size > 1 or group.strategy is not None):
        expected = "native on several processes or devices"
        expect(config.engine == "native", "engine", expected, config.engine)
        if reason is not None:
            raise ConfigError(
                f"engine: the native engine cannot train this model: {reason}. Expected a model "
                "without that on several processes or devices, or one device with engine='keras'."
            )
    if reason is not None:
        logger.warning(
            "Keras's own engine trains, since the native one cannot train this model: %s", reason
        )
    if not is_native or reason is not None:
        return KerasEngine(model, batches, config, group)
    if backend == "torch":
        from kerasnorm.engines.torch.engine import TorchEngine

        return TorchEngine(model, batches, config, group)
    from kerasnorm.engines.tensorflow.engine import TensorFlowEngine

    return TensorFlowEngine(model, batches, config, group)


def _losses_of_layers(model: keras.Model, batches: Batches) -> list[Any]:
    """Returns the losses that layers add themselves when the model is called on one batch.

    Nothing in the model changes. A whole batch: a layer may fail on one image, or on several.

    Raises:
        ConfigError: A layer of the model raises an error when it is called.
    """
    images = keras.ops.convert_to_tensor(batches.split.images[: batches.batch_size])
    with calling_layers(), keras.StatelessScope(collect_losses=True) as scope:
        model(images, training=True)
    return list(scope.losses)


def _not_native(model: keras.Model, losses: list[Any]) -> str | None:
    """Returns why this backend's native engine would train a model wrongly, None if it is correct.

    `losses` are those that layers add.
    """
    for variable in model.trainable_variables:
        # On TensorFlow the Keras optimizer itself takes the step, and applies these.
        if keras.backend.backend() == "torch" and variable.constraint is not None:
            return f"{variable.path} has a constraint"
    if losses:
        return "a layer adds a loss of its own, by activity_regularizer or add_loss"
    return None


def join(launch: Launch, devices: int) -> ProcessGroup:
    """Returns the process group of this process, connected to the other processes.

    Raises:
        ConfigError: The backend does not work with the launcher.
    """
    backend = keras.backend.backend()
    if launch.size > 1 and (launch.launcher, backend) not in LAUNCHERS:
        raise ConfigError(
            f"backend: {launch.launcher} started {launch.size} processes, which work together on "
            f"{' or '.join(name for _, name in LAUNCHERS)}, each with its own launcher. "
            f"Received: backend={backend!r}"
        )
    if backend == "torch" and launch.size > 1:
        from kerasnorm.engines.torch.engine import TorchProcessGroup

        return TorchProcessGroup(launch, keras.ops.zeros(()).device)
    if backend == "tensorflow" and (launch.size > 1 or devices > 1):
        from kerasnorm.engines.tensorflow.engine import TensorFlowProcessGroup

        return TensorFlowProcessGroup(launch)
    return ProcessGroup()


def predictor(model: Any) -> Callable[[Images], NDArray[np.float32]]:
    """Returns a function that gives a Keras model's outputs (N, classes) for images (N, H, W, C).

    The native engine computes them if it can, otherwise `model.predict`. The model is lowered, or
    traced, once for all calls, which see the variables as they are then.

    Raises:
        ConfigError: A layer of the model raises an error when Keras calls it; the function raises
            it. What the native engine alone cannot compute is an error of this package.
    """
    by_keras = partial(evaluation.predict, model)
    native = cache(lambda: _native_predictor(model) or by_keras)

    def predict(images: Images) -> NDArray[np.float32]:
        try:
            return native()(images)
        except Exception as error:
            if not isinstance(error, KerasnormError) and not is_out_of_memory(error):
                with calling_layers():
                    by_keras(images)
            raise

    return predict


def _native_predictor(model: Any) -> Callable[[Images], NDArray[np.float32]] | None:
    """Returns the native engine's function for `predictor`, None where it has none for a model."""
    backend = keras.backend.backend()
    if backend == "torch":
        from kerasnorm.engines.torch import engine as torch_engine
        from kerasnorm.engines.torch import lowering as torch_lowering

        with suppress(ConfigError):  # a subclassed model has no graph to lower
            return partial(torch_engine.predict, torch_lowering.LoweredModel(model))
    if backend == "tensorflow":
        from kerasnorm.engines.tensorflow import engine as tensorflow_engine

        return partial(tensorflow_engine.predict, tensorflow_engine.inference(model))
    return None
