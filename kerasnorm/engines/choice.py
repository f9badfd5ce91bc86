"""Which engine trains a model and which one answers for it, by backend, model and config."""

import logging
from collections.abc import Callable
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
from kerasnorm.job import Job
from kerasnorm.team import Team

Notify = Callable[[str], None]

_log = logging.getLogger("kerasnorm")

LAUNCHERS = (("torchrun", "torch"), ("TF_CONFIG", "tensorflow"))


def make(
    model: keras.Model,
    batches: Batches,
    config: TrainConfig,
    team: Team | None = None,
    notify: Notify = _log.warning,
) -> Engine:
    """Returns the engine that a config asks for.

    The portable one takes the place of the native one on jax, and for a model that the native one
    would train wrongly.

    Args:
        model: What to train.
        batches: On what.
        config: How.
        team: The processes or devices that do it together, if there are several.
        notify: Receives a sentence if the native engine cannot train the model.

    Raises:
        ConfigError: Several are to do it, and this engine cannot.
    """
    backend = keras.backend.backend()
    reason = None
    if config.engine == "native" and backend in ("torch", "tensorflow"):
        reason = not_native(model, batches)
    if team is not None and (team.size > 1 or team.strategy is not None):
        if reason is not None:
            raise ConfigError(
                f"engine: the native engine cannot train this model: {reason}. Expected a model "
                "without that on several processes or devices, or one device with engine='keras'."
            )
        return _make_shared(model, batches, config, team)
    if reason is not None:
        notify(f"Keras's own engine trains, since the native one cannot train this model: {reason}")
        return PortableEngine(model, batches, config)
    if config.engine == "native" and backend == "torch":
        from kerasnorm.engines.torch_engine import TorchEngine

        return TorchEngine(model, batches, config)
    if config.engine == "native" and backend == "tensorflow":
        from kerasnorm.engines.tensorflow_engine import TensorFlowEngine

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


def _make_shared(model: keras.Model, batches: Batches, config: TrainConfig, team: Team) -> Engine:
    if config.engine != "native":
        raise ConfigError(
            "engine: expected native on several processes or devices. "
            f"Received: engine={config.engine!r}"
        )
    if team.strategy is not None:
        from kerasnorm.engines.tensorflow_distributed import DistributedEngine as OnTensorFlow

        return OnTensorFlow(model, batches, config, team)
    from kerasnorm.engines.torch_distributed import DistributedEngine as OnTorch
    from kerasnorm.engines.torch_team import TorchTeam

    assert isinstance(team, TorchTeam)
    return OnTorch(model, batches, config, team)


def join(job: Job, devices: int) -> Team:
    """Returns the team of this process, connected to the others.

    Args:
        job: What the launcher says.
        devices: How many devices this process uses.

    Raises:
        ConfigError: The launcher is not one of the backend's.
    """
    backend = keras.backend.backend()
    if job.size > 1 and (job.launcher, backend) not in LAUNCHERS:
        raise ConfigError(
            f"backend: {job.launcher} started {job.size} processes, which work together on "
            f"{' or '.join(name for _, name in LAUNCHERS)}, each with its own launcher. "
            f"Received: backend={backend!r}"
        )
    if backend == "torch" and job.size > 1:
        from kerasnorm.engines.torch_team import TorchTeam

        return TorchTeam(job, keras.ops.zeros(()).device)
    if backend == "tensorflow" and (job.size > 1 or devices > 1):
        from kerasnorm.engines.tensorflow_distributed import TensorFlowTeam

        return TensorFlowTeam(job)
    return Team()


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
