"""Which engine trains a model and which one answers for it, by backend, model and config."""

import logging
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from kerasnorm.config import TrainConfig
from kerasnorm.data.batches import Batches
from kerasnorm.engines.base import Engine
from kerasnorm.engines.keras_engine import PortableEngine
from kerasnorm.errors import ConfigError
from kerasnorm.inspection import evaluation
from kerasnorm.training.process_group import Launch, ProcessGroup

_log = logging.getLogger(__name__)

LAUNCHERS = (("torchrun", "torch"), ("TF_CONFIG", "tensorflow"))


def make(
    model: keras.Model, batches: Batches, config: TrainConfig, group: ProcessGroup | None = None
) -> Engine:
    """Returns the engine that a config asks for.

    The portable one takes the place of the native one on jax, and for a model that the native one
    would train wrongly.

    Args:
        model: What to train.
        batches: On what.
        config: How.
        group: The processes or devices that do it together, if there are several.

    Raises:
        ConfigError: Several are to do it, and this engine cannot.
    """
    backend = keras.backend.backend()
    reason = None
    if config.engine == "native" and backend in ("torch", "tensorflow"):
        reason = not_native(model, batches)
    if group is not None and (group.size > 1 or group.strategy is not None):
        if reason is not None:
            raise ConfigError(
                f"engine: the native engine cannot train this model: {reason}. Expected a model "
                "without that on several processes or devices, or one device with engine='keras'."
            )
        return _make_shared(model, batches, config, group)
    if reason is not None:
        _log.warning(
            "Keras's own engine trains, since the native one cannot train this model: %s", reason
        )
        return PortableEngine(model, batches, config)
    if config.engine == "native" and backend == "torch":
        from kerasnorm.engines.torch.engine import TorchEngine

        return TorchEngine(model, batches, config)
    if config.engine == "native" and backend == "tensorflow":
        from kerasnorm.engines.tensorflow.engine import TensorFlowEngine

        return TensorFlowEngine(model, batches, config)
    return PortableEngine(model, batches, config)


def not_native(model: keras.Model, batches: Batches) -> str | None:
    """Returns why this backend's native engine would train a model wrongly, None if it would not.

    Args:
        model: What to train.
        batches: On what; the model is called on one of its images, and is left as it is.
    """
    for variable in model.trainable_variables:
        # On TensorFlow the Keras optimizer itself takes the step, and applies these.
        if keras.backend.backend() == "torch" and variable.constraint is not None:
            return f"{variable.path} has a constraint"
    image = keras.ops.convert_to_tensor(batches.split.images[:1])
    with keras.StatelessScope(collect_losses=True) as scope:
        model(image, training=True)
    if scope.losses:
        return "a layer adds a loss of its own, by activity_regularizer or add_loss"
    return None


def _make_shared(
    model: keras.Model, batches: Batches, config: TrainConfig, group: ProcessGroup
) -> Engine:
    if config.engine != "native":
        raise ConfigError(
            "engine: expected native on several processes or devices. "
            f"Received: engine={config.engine!r}"
        )
    if group.strategy is not None:
        from kerasnorm.engines.tensorflow.distributed import DistributedEngine as OnTensorFlow

        return OnTensorFlow(model, batches, config, group)
    from kerasnorm.engines.torch.distributed import DistributedEngine as OnTorch
    from kerasnorm.engines.torch.process_group import TorchProcessGroup

    assert isinstance(group, TorchProcessGroup)
    return OnTorch(model, batches, config, group)


def join(launch: Launch, devices: int) -> ProcessGroup:
    """Returns the group of this process, connected to the others.

    Args:
        launch: What the launcher says.
        devices: How many devices this process uses.

    Raises:
        ConfigError: The launcher is not one of the backend's.
    """
    backend = keras.backend.backend()
    if launch.size > 1 and (launch.launcher, backend) not in LAUNCHERS:
        raise ConfigError(
            f"backend: {launch.launcher} started {launch.size} processes, which work together on "
            f"{' or '.join(name for _, name in LAUNCHERS)}, each with its own launcher. "
            f"Received: backend={backend!r}"
        )
    if backend == "torch" and launch.size > 1:
        from kerasnorm.engines.torch.process_group import TorchProcessGroup

        return TorchProcessGroup(launch, keras.ops.zeros(()).device)
    if backend == "tensorflow" and (launch.size > 1 or devices > 1):
        from kerasnorm.engines.tensorflow.distributed import TensorFlowProcessGroup

        return TensorFlowProcessGroup(launch)
    return ProcessGroup()


def predict(model: Any, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Returns the outputs (N, classes) that a Keras model gives for raw images (N, H, W, C).

    As `kerasnorm.inspection.evaluation.predict`, on the native engine where it knows the model.
    """
    backend = keras.backend.backend()
    if backend == "torch":
        from kerasnorm.engines.torch import engine as torch_engine
        from kerasnorm.engines.torch import lowering as torch_lowering

        try:
            lowered = torch_lowering.LoweredModel(model)
        except ConfigError:  # a subclassed model has no graph to lower
            return evaluation.predict(model, images)
        return torch_engine.predict(lowered, images)
    if backend == "tensorflow":
        from kerasnorm.engines.tensorflow import engine as tensorflow_engine

        forward = tensorflow_engine.inference(model)
        return tensorflow_engine.predict(forward, images)
    return evaluation.predict(model, images)
