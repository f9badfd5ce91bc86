"""The portable engine: plain `model.fit`, on any backend that Keras has.

It is the reference that the native engines are tested and timed against.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from kerasnorm.config import TrainConfig
from kerasnorm.data.batches import Batches
from kerasnorm.engines.base import BatchListener
from kerasnorm.engines.diagnosis import diverged, first_nonfinite
from kerasnorm.engines.optimizers import ConvMuon
from kerasnorm.engines.schedule import learning_rates
from kerasnorm.errors import CorruptFileError, DivergedError
from kerasnorm.inspection.evaluation import Scores, predict
from kerasnorm.keras_settings import stock_keras
from kerasnorm.runtime import seed_everything

EPSILON = 1e-8  # of Adam; PyTorch's default
SEED_STATE = "seed_generator_state"  # what Keras calls the variable of a SeedGenerator
ALL_BUT_KERNELS = r"^(?!kernel$)"  # names of the variables that are not decayed


@keras.saving.register_keras_serializable(package="kerasnorm")
class RateTable(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate for each step, looked up; the last one holds beyond the end."""

    def __init__(self, rates: Sequence[float]) -> None:
        self.rates = np.asarray(rates, np.float32)

    def __call__(self, step: Any) -> Any:
        """Returns the rate of optimizer step `step`, a scalar tensor."""
        index = ops.minimum(ops.cast(step, "int32"), len(self.rates) - 1)
        return ops.take(ops.convert_to_tensor(self.rates), index)

    def get_config(self) -> dict[str, Any]:
        """Returns the rates; callbacks that save the compiled model need it."""
        return {"rates": self.rates.tolist()}


@stock_keras
def make_optimizer(config: TrainConfig, total_steps: int) -> keras.Optimizer:
    """Returns the Keras optimizer with its schedule; only kernels are decayed.

    A constant rate is a plain number, so that callbacks such as ReduceLROnPlateau can change it.
    """
    constant = config.schedule == "constant"
    rate = (
        config.learning_rate
        if constant
        else RateTable(learning_rates(config, total_steps).tolist())
    )
    decay = config.weight_decay or None
    if config.optimizer == "sgd":
        optimizer = keras.optimizers.SGD(
            rate, momentum=config.momentum, nesterov=config.momentum > 0, weight_decay=decay
        )
    elif config.optimizer == "muon":
        optimizer = ConvMuon(
            rate,
            weight_decay=decay,
            adam_weight_decay=None,
            epsilon=EPSILON,
            momentum=config.momentum,
        )
    elif config.optimizer == "adamw":
        optimizer = keras.optimizers.AdamW(rate, weight_decay=decay or 0.0, epsilon=EPSILON)
    else:
        optimizer = keras.optimizers.Adam(rate, epsilon=EPSILON)
    if decay:
        optimizer.exclude_from_weight_decay(var_names=[ALL_BUT_KERNELS])
    return optimizer


class PortableEngine:
    """Trains with `model.fit`; see `kerasnorm.engines.base.Engine`."""

    @stock_keras  # Keras's own mean of the loss has the type of floats at `compile`
    def __init__(self, model: keras.Model, batches: Batches, config: TrainConfig) -> None:
        self.model = model
        self.batches = batches
        self.config = config
        optimizer = make_optimizer(config, config.epochs * batches.steps)
        optimizer.build(model.trainable_variables)
        model.compile(
            optimizer=optimizer,
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, dtype="float32"),
            metrics=[
                # Keras's own "loss" includes the regularization terms.
                keras.metrics.SparseCategoricalCrossentropy(
                    "entropy", dtype="float32", from_logits=True
                ),
                keras.metrics.SparseCategoricalAccuracy("accuracy", dtype="float32"),
            ],
            auto_scale_loss=False,  # bfloat16 and float32 need no scale
            # torch.compile breaks often and gains nothing on CPU; elsewhere Keras decides.
            jit_compile=False if keras.backend.backend() == "torch" else "auto",
        )

    @stock_keras
    def train_epoch(self, epoch: int, listener: BatchListener) -> Scores:
        """Trains on every batch of an epoch, counted from 0."""
        history = self.model.fit(
            EpochData(self.batches, epoch),
            epochs=epoch + 1,
            initial_epoch=epoch,
            shuffle=False,
            verbose=0,
            callbacks=[_Bridge(self, epoch, listener)],
        ).history
        return Scores(float(history["entropy"][-1]), float(history["accuracy"][-1]))

    def seed(self, epoch: int) -> None:
        """Makes dropout and all that a layer draws a function of (seed, epoch), as order is."""
        if keras.backend.backend() != "tensorflow":
            # There, a new seed makes TensorFlow forget its compiled functions, two seconds an
            # epoch; and all that Keras draws comes from the generators below.
            seed_everything(self.config.seed, epoch)
        for index, layer in enumerate(self.model.layers):
            # Those of the layers inside a wrapper or a nested model too.
            states = [v for v in layer.variables if v.name == SEED_STATE]
            for number, state in enumerate(states):
                key = np.random.SeedSequence([self.config.seed, epoch, index, number])
                state.assign(key.generate_state(2).astype(state.dtype))

    def rate(self, epoch: int, step: int) -> float:
        """Returns the learning rate of a step, both counted from 0."""
        if self.config.schedule == "constant":  # a callback may have changed it
            return float(ops.convert_to_numpy(self.model.optimizer.learning_rate))
        steps = self.batches.steps
        rates = learning_rates(self.config, self.config.epochs * steps)
        return float(rates[epoch * steps + step])

    def diverged(self, value: float, epoch: int, step: int) -> DivergedError:
        """Returns the error of a step whose loss, or gradient if that is finite, is not finite."""
        images, _ = self.batches.batch(epoch, step)
        what = f"loss is {value}" if not np.isfinite(value) else "gradient is not finite"
        place = first_nonfinite(self.model, images) or "the loss, or the way back from it"
        return diverged(self, what, epoch, step, place)

    @stock_keras
    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Returns the logits (N, classes) of raw images (N, H, W, C)."""
        return predict(self.model, images)

    def state(self) -> dict[str, NDArray[Any]]:
        """Returns copies of the model's and the optimizer's variables."""
        return {
            f"{part}/{index:03d}": ops.convert_to_numpy(variable.value).copy()
            for part, variables in self._variables()
            for index, variable in enumerate(variables)
        }

    def load_state(self, state: dict[str, NDArray[Any]]) -> None:
        """Puts back what `state` returned."""
        named = {
            f"{part}/{index:03d}": variable
            for part, variables in self._variables()
            for index, variable in enumerate(variables)
        }
        shapes = {name: tuple(variable.shape) for name, variable in named.items()}
        if shapes != {name: array.shape for name, array in state.items()}:
            raise CorruptFileError("The checkpoint is of another model: its arrays do not fit.")
        for name, variable in named.items():
            variable.assign(state[name])

    def _variables(self) -> list[tuple[str, list[Any]]]:
        return [("model", self.model.variables), ("optimizer", self.model.optimizer.variables)]


class EpochData(keras.utils.PyDataset):
    """One epoch of `Batches`, in the form that `model.fit` takes."""

    def __init__(self, batches: Batches, epoch: int) -> None:
        super().__init__()
        self.batches = batches
        self.epoch = epoch
        self.order = batches.order(epoch)

    def __len__(self) -> int:
        return self.batches.steps

    def __getitem__(self, step: int) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        return self.batches.batch(self.epoch, step, self.order)


class _Bridge(keras.callbacks.Callback):
    """Hands Keras's batch events to the listener, and ends a run that has diverged."""

    def __init__(self, engine: PortableEngine, epoch: int, listener: BatchListener) -> None:
        super().__init__()
        self.engine = engine
        self.epoch = epoch
        self.listener = listener

    def on_train_batch_begin(self, batch: int, logs: dict[str, float] | None = None) -> None:
        if batch == 0:  # and not before: the first `fit` of a model draws numbers to build it
            self.engine.seed(self.epoch)
        self.listener.on_batch_begin(batch)

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        logs = logs or {}
        loss = logs.get("loss", 0.0)
        if not np.isfinite(loss):
            raise self.engine.diverged(loss, self.epoch, batch)
        self.listener.on_batch_end(batch, logs)
