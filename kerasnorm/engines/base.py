"""What all engines share: the loop over the steps of an epoch, divergence, draws of dropout."""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from kerasnorm.config import TrainConfig
from kerasnorm.data.augment import DROPOUT_STREAM, generator
from kerasnorm.data.batches import Batches
from kerasnorm.data.stored import Images
from kerasnorm.engines.optimizers import make_optimizer
from kerasnorm.engines.schedule import learning_rates
from kerasnorm.errors import ConfigError, CorruptFileError, DivergedError
from kerasnorm.inspection.evaluation import Scores
from kerasnorm.inspection.graph import call_node, functional_graph, nodes
from kerasnorm.keras_settings import stock_keras
from kerasnorm.process_group import ProcessGroup
from kerasnorm.runtime import seed_everything

logger = logging.getLogger(__name__)

SETTING = (int, float, str, type(None))  # types of an optimizer's settings
SEED_STATE = "seed_generator_state"  # what Keras calls the variable of a SeedGenerator


class BatchListener(Protocol):
    """Receives each training step; `logs` holds the running means of Keras's metrics."""

    def on_batch_begin(self, step: int) -> None:
        """Called before step `step` of the epoch, counted from 0."""

    def on_batch_end(self, step: int, logs: Mapping[str, float]) -> None:
        """Called after step `step`."""


@dataclass(frozen=True, eq=False)
class RunningMeans(Mapping[str, float]):
    """The `logs` of a batch: means over the images of the epoch so far.

    A mean is computed when it is read, because reading waits for an accelerator. `sums` are those
    of loss, cross-entropy and correct predictions over `images` images.
    """

    NAMES = ("loss", "entropy", "accuracy")
    sums: Any
    images: int

    def __getitem__(self, name: str) -> float:
        if name not in self.NAMES:
            raise KeyError(name)
        return float(self.sums[self.NAMES.index(name)]) / self.images

    def __iter__(self) -> Iterator[str]:
        return iter(self.NAMES)

    def __len__(self) -> int:
        return len(self.NAMES)


@dataclass(frozen=True)
class StepResult:
    """The result of one training step."""

    # Sums of loss, cross-entropy and correct predictions over the batch, an array of shape (3,) on
    # any device.
    sums: Any
    images: int  # number of images in the batch
    is_stopping: bool = False  # whether a process of the group has received a signal to stop
    # Whether the epoch may end after this step; it may not if later steps have already been taken.
    can_stop: bool = True


class Engine(ABC):
    """Trains one `keras.Model` on one `Batches`.

    The compiled Keras model and its optimizer own all state, so that callbacks and
    checkpoints are the same for every engine.

    Attributes:
        model: The model, whose variables hold the state of training whenever no epoch runs.
        batches: The training batches.
        config: The training part of the run's config.
        group: The processes or devices that train together.
        rates: Learning rate of each step of the run, shape (steps,).
        is_fused: Whether norms are computed together with their neighbours, where they can be.
        fused_kernels: Which compiled functions it computes norms with; None for none.
        waits_for_callbacks: Whether each step is taken only after the callbacks of the step before,
            which may change what it computes.
    """

    fused_kernels: str | None = None
    waits_for_callbacks = False
    _constant_rate: Any = None  # of the last step, where the schedule is constant

    @stock_keras  # Keras's own mean of the loss has the type of floats at `compile`.
    def __init__(
        self,
        model: keras.Model,
        batches: Batches,
        config: TrainConfig,
        group: ProcessGroup | None = None,
    ) -> None:
        self.model = model
        self.batches = batches
        self.config = config
        self.group = group or ProcessGroup()
        self.rates = learning_rates(config, config.epochs * batches.steps)
        self.is_fused = config.fused
        optimizer = make_optimizer(config, self.rates)
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
        # Callbacks ask the metrics, which their first use makes, whether more is better.
        label, logits = np.zeros(1, np.int32), np.zeros((1, model.output_shape[-1]), np.float32)
        model.compute_metrics(None, ops.convert_to_tensor(label), ops.convert_to_tensor(logits))
        model.reset_metrics()
        self.planned_for = self.switches()
        self.compiled = self._compiled()

    @abstractmethod
    def plan(self) -> None:
        """Prepares the steps for the model as it is now."""

    def keep_to(self, fused_kernels: str | None) -> None:
        """Goes on with the functions of an earlier part of the run, so that its bits stay the same.

        `fused_kernels` is what the attribute of that name was then; None computes norms apart.
        """
        if fused_kernels is None and self.fused_kernels is not None:
            self.is_fused = False
            self.plan()
        elif fused_kernels != self.fused_kernels:
            logger.warning(
                "The run was computed with fused functions of another processor or compiler: the "
                "last bits of its numbers may differ from those of an uninterrupted run."
            )

    @abstractmethod
    def train_epoch(self, epoch: int, listener: BatchListener | None = None) -> Scores:
        """Trains on every batch of an epoch, or until `model.stop_training` is set.

        As in Keras, an epoch that begins with `stop_training` set ends after its first step.

        Returns:
            Cross-entropy and accuracy over the epoch's training images, as the model saw them:
            augmented, with dropout, while it changed. Regularization terms are not in the loss.

        Raises:
            DivergedError: The loss or a gradient is not finite.
        """

    @abstractmethod
    def predict(self, images: Images) -> NDArray[np.float32]:
        """Returns the logits (N, classes) of raw images (N, H, W, C)."""

    def seed(self, epoch: int) -> None:
        """Makes the random numbers of all layers a function of (seed, epoch)."""
        if keras.backend.backend() != "tensorflow":
            # On TensorFlow a new seed would discard compiled functions, at two seconds per epoch,
            # and Keras draws from the generators below only.
            seed_everything(self.config.seed, epoch)
        for index, layer in enumerate(self.model.layers):
            # These include the layers inside a wrapper or a nested model.
            states = [v for v in layer.variables if v.name == SEED_STATE]
            for number, state in enumerate(states):
                key = np.random.SeedSequence([self.config.seed, epoch, index, number])
                state.assign(key.generate_state(2).astype(state.dtype))

    def check_compiled(self) -> None:
        """Checks that the model is compiled as it was: steps and checkpoints are made for that.

        Raises:
            ConfigError: A callback compiled the model again, or changed its optimizer.
        """
        found = self._compiled()
        for change, value in self.compiled.items():
            now = found.get(change)
            if now is value or (isinstance(now, SETTING) and now == value):
                continue
            raise ConfigError(
                "callbacks: expected that the model keeps its loss, and its optimizer with all "
                f"settings that the config names. Received: a callback that {change}. With "
                "--schedule constant a callback may set learning_rate to another number, and "
                "layers that it freezes count without compile."
            )

    def _compiled(self) -> dict[str, Any]:
        """Returns what a callback must not change of the compiled model, by what it would do."""
        optimizer: Any = self.model.optimizer
        return {
            "compiled the model again": self.model._compile_loss,  # new in each `compile`
            "replaced the optimizer": optimizer,
            "set learning_rate to a schedule": getattr(optimizer, "_learning_rate", None),
            **{
                f"set {name} of the optimizer": value
                for name, value in getattr(optimizer, "__dict__", {}).items()
                if not name.startswith("_") and isinstance(value, SETTING)
            },
        }

    def keep_rate(self) -> None:
        """Keeps the rate of the step that is taken next: callbacks may change a constant one."""
        if self.config.schedule == "constant":
            # A copy, because reading the number would wait for an accelerator.
            self._constant_rate = ops.copy(self.model.optimizer.learning_rate)

    def rate(self, epoch: int, step: int) -> float:
        """Returns the learning rate that a step was taken with, both counted from 0.

        At a constant rate, which callbacks may change, the step is the last one.
        """
        if self._constant_rate is not None:
            return float(ops.convert_to_numpy(self._constant_rate))
        number = epoch * (len(self.rates) // self.config.epochs) + step
        return float(self.rates[min(number, len(self.rates) - 1)])

    def diverged(
        self, epoch: int, step: int, loss: float, variable: keras.Variable | None = None
    ) -> DivergedError:
        """Returns the error of a step whose loss or gradient is not finite.

        `variable` is one whose gradient is not finite, where the loss is finite.
        """
        if variable is not None and np.isfinite(loss):
            what = "gradient is not finite"
            *layer, name = variable.path.split("/")
            place = f"the gradient of {name} of layer {'/'.join(layer)}"
        else:
            what = f"loss is {loss}"
            images, _ = self.batches.batch(epoch, step)
            place = first_nonfinite(self.model, images) or "the loss, or the way back from it"
        epoch, step = self.batches.place(epoch, step)
        advice = "No weight has changed yet: look at that layer, and at the images."
        if epoch or step:
            kept = "; the earlier checkpoints are whole" if epoch else ""
            advice = f"Try a smaller --learning-rate{kept}."
        return DivergedError(
            f"The {what} at epoch {epoch + 1}, step {step + 1}, at a learning rate of "
            f"{self.rate(epoch, step):.6g} (peak {self.config.learning_rate:g}). First value that "
            f"is not finite: {place}. {advice}"
        )

    def state(self) -> dict[str, NDArray[Any]]:
        """Returns copies of everything that training changes: weights, statistics, optimizer."""
        return {
            name: ops.convert_to_numpy(variable.value).copy()
            for name, variable in self._variables().items()
        }

    def load_state(self, state: dict[str, NDArray[Any]]) -> None:
        """Restores what `state` returned, so that training continues as if it had not stopped.

        Raises:
            CorruptFileError: The arrays are those of another model.
        """
        variables = self._variables()
        shapes = {name: tuple(variable.shape) for name, variable in variables.items()}
        if shapes != {name: array.shape for name, array in state.items()}:
            raise CorruptFileError("The checkpoint is of another model: its arrays do not fit.")
        for name, variable in variables.items():
            variable.assign(state[name])

    def switches(self) -> list[list[Any]]:
        """Returns what callbacks may change of the layers: for each, `trainable` and its `rate`.

        Layers of layers are among them. The rate is that of a dropout; None for other layers.
        """
        found = [(layer.trainable, getattr(layer, "rate", None)) for layer in self._layers()]
        return [[on, rate if isinstance(rate, (int, float)) else None] for on, rate in found]

    def load_switches(self, switches: list[list[Any]]) -> None:
        """Restores what `switches` returned.

        Raises:
            CorruptFileError: They are those of another model.
        """
        if len(switches) != len(self._layers()):
            raise CorruptFileError("The checkpoint is of another model: it has other layers.")
        # A layer comes before those in it, whose `trainable` it sets.
        for layer, (is_trainable, rate) in zip(self._layers(), switches, strict=True):
            if layer.trainable != is_trainable:
                layer.trainable = is_trainable
            if rate is not None and layer.rate != rate:
                layer.rate = rate

    def follow_callbacks(self) -> None:
        """Plans the steps anew if a callback froze layers or changed rates of dropout.

        Raises:
            ConfigError: The optimizer is another one than before, or does not know the weights
                that are to be trained.
        """
        self.check_compiled()
        switches = self.switches()
        if switches == self.planned_for:
            return
        known = {id(variable) for variable in self.model.optimizer._trainable_variables}
        trained = {id(variable) for variable in self.model.trainable_variables}
        if not trained or not trained <= known:
            what = "the weights of a layer that was frozen before" if trained else "no weights"
            raise ConfigError(
                "callbacks: expected that some of the weights that were trainable when training "
                f"began are left so. Received: a callback after which {what} are to be trained."
            )
        self.plan()
        self.planned_for = switches

    def _layers(self) -> list[Any]:
        return list(self.model._flatten_layers())

    def _variables(self) -> dict[str, keras.Variable]:
        return {
            f"{part}/{index:03d}": variable
            for part, owner in (("model", self.model), ("optimizer", self.model.optimizer))
            for index, variable in enumerate(owner.variables)
        }


class NativeEngine(Engine):
    """An engine that takes its steps without `model.fit`; this class owns the loop over them."""

    @stock_keras
    def train_epoch(self, epoch: int, listener: BatchListener | None = None) -> Scores:
        """Trains on every batch of an epoch; see `Engine.train_epoch`."""
        self.follow_callbacks()
        self.seed(epoch)
        sums: Any = 0
        images = 0
        results = self.take_steps(epoch)
        is_next = True  # whether the step has not been taken together with the one before
        for step in range(self.batches.steps):
            if listener is not None:
                listener.on_batch_begin(step)
            if is_next:
                self.keep_rate()
            with self.group.connection():
                result = next(results)
            is_next = result.can_stop
            if result.is_stopping:
                self.group.interruptions.agree()
            sums, images = result.sums + sums, images + result.images
            if listener is not None:
                listener.on_batch_end(step, RunningMeans(sums, images))
            if self.model.stop_training and result.can_stop:
                break
        self.end_epoch()
        means = RunningMeans(sums, images)
        return Scores(means["entropy"], means["accuracy"])

    @abstractmethod
    def take_steps(self, epoch: int) -> Iterator[StepResult]:
        """Takes the optimizer steps of an epoch, one for each result that is requested.

        Raises:
            DivergedError: The loss or a gradient is not finite.
        """

    def end_epoch(self) -> None:
        """Completes the state of the model after the last step of an epoch."""


@stock_keras
def first_nonfinite(model: Any, images: Any) -> str | None:
    """Returns the first value of the forward pass that is not finite, or None if all are.

    The variables of the model, a functional one, stay as they are.
    """
    graph = functional_graph(model)
    values = {id(graph.inputs[0]): ops.convert_to_tensor(np.asarray(images), graph.inputs[0].dtype)}
    with keras.StatelessScope(), np.errstate(all="ignore"):  # keeps the variables' values
        for node in nodes(graph):
            if node.is_input:
                continue
            layer = node.operation
            for variable in getattr(layer, "variables", ()):
                if "float" in str(variable.dtype) and not is_finite(variable.value):
                    return f"{variable.name} of layer {layer.name}"
            outputs = call_node(node, values, training=True)
            values.update((id(t), y) for t, y in zip(node.outputs, outputs, strict=True))
            if not all(is_finite(output) for output in outputs):
                return f"the output of layer {layer.name}"
    return None


def last_nonfinite(
    variables: Iterable[keras.Variable], gradients: Iterable[Any]
) -> keras.Variable | None:
    """Returns the variable nearest to the loss whose gradient is not finite, None if all are."""
    pairs = list(zip(variables, gradients, strict=True))
    return next((variable for variable, g in reversed(pairs) if not is_finite(g)), None)


def is_finite(tensor: Any) -> bool:
    """Says whether all values of a tensor are finite."""
    return bool(np.isfinite(ops.convert_to_numpy(ops.cast(tensor, "float32"))).all())


def dropout_generator(key: tuple[int, int, int], number: int) -> np.random.Generator:
    """Returns the random generator of one dropout in one step.

    The key is (seed, epoch, step), the number that of the dropout's call in the model's graph.
    """
    seed, *when = key
    return generator(seed, DROPOUT_STREAM, *when, number)


def dropped_positions(rng: np.random.Generator, count: int, rate: float) -> NDArray[np.int64]:
    """Returns which of `count` values a dropout of probability `rate` drops, ascending.

    Each value is dropped independently. The gaps between dropped values are geometrically
    distributed, and drawing the gaps takes count * rate random numbers instead of count.
    """
    scale = -1 / math.log1p(-rate)
    expected = count * rate
    size = int(expected + 6 * math.sqrt(expected) + 10)  # too few once in 1e9 draws
    parts, end = [], -1.0
    while end < count:
        gaps = np.floor(rng.standard_exponential(size) * scale) + 1
        parts.append(np.cumsum(gaps) + end)
        end = parts[-1][-1]
    positions = np.concatenate(parts)
    return positions[: np.searchsorted(positions, count)].astype(np.int64)
