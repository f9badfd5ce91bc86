"""`fit(config) -> Run`: from a config to a trained, saved and measured model.

Keras is imported only after `runtime.start` has chosen its backend; hence the imports inside.
"""

import dataclasses
import logging
import shlex
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kerasnorm import provenance, runtime
from kerasnorm.config import Config, flatten, resolve
from kerasnorm.data import Dataset, prepare
from kerasnorm.data.augment import Augmentation
from kerasnorm.data.batches import Batches
from kerasnorm.data.preprocessing import channel_statistics, input_statistics
from kerasnorm.errors import ConfigError, CorruptFileError, DataError
from kerasnorm.files import check_file, run_lock, sweep, write_json
from kerasnorm.progress import NullProgress, Progress
from kerasnorm.training import run
from kerasnorm.training.launch import this_launch
from kerasnorm.training.process_group import ProcessGroup
from kerasnorm.training.signals import INTERRUPTIONS

if TYPE_CHECKING:
    import keras

    from kerasnorm.engines.base import Engine

logger = logging.getLogger(__name__)


def fit(
    config: Config | None = None,
    *,
    out: Path | str | None = None,
    resume: Path | str | None = None,
    callbacks: Iterable["keras.callbacks.Callback"] = (),
    progress: Progress | None = None,
    **overrides: Any,
) -> run.Run:
    """Trains one model and leaves a run's folder behind.

    Args:
        config: What to train; by default the recipe `best`.
        out: The run's folder, new or empty; by default one under `results/runs`.
        resume: The folder of an unfinished run to go on with, instead of `config` and `out`;
            or "auto": start the run in `out`, or go on with it where it was begun.
        callbacks: Keras callbacks; their logs hold loss, accuracy, val_*, test_* and
            learning_rate.
        progress: Receives how far the run is, counted in steps; by default nothing is shown.
            What the run notes is logged, see `logging`, under the logger "kerasnorm".
        **overrides: Any field of the config, named without its section.

    Raises:
        ConfigError: A value is unknown or out of range.
        DataError: The data are missing, damaged or unfit.
        DivergedError: The loss or a weight is no longer finite.
        RunFolderError: The folder holds another run, is in use or cannot be written.
        MissingPackageError: The backend is not installed.
    """
    return fit_with_data(config, out, resume, callbacks, progress, overrides)[0]


def fit_with_data(
    config: Config | None,
    out: Path | str | None,
    resume: Path | str | None,
    callbacks: Iterable["keras.callbacks.Callback"],
    progress: Progress | None,
    overrides: dict[str, Any],
) -> tuple[run.Run, Dataset | None]:
    """Does what `fit` does, and returns the data set beside the run, if it had to be read."""
    launch = this_launch()
    progress = progress if progress is not None and launch.rank == 0 else NullProgress()
    if launch.restarts and resume is None and out is not None:
        resume = "auto"  # torchrun starts a job anew with the same line
    plan = _plan(config, out, resume, overrides)
    if plan.is_resumed and plan.config == plan.saved:
        with suppress(CorruptFileError):  # what is damaged is made again
            done = run.Run.load(plan.path)
            check_file(done.path / run.MODEL)
            logger.info(f"{done.path} has finished already.")
            return done, None
    choice = plan.config.train
    backend, device = runtime.start(
        choice.backend, choice.device, choice.devices, deterministic=choice.deterministic
    )
    from kerasnorm.engines.choice import join

    group = join(launch, choice.devices)
    try:
        # The first process may have begun the run while another was looking for it.
        plan = group.on_first(lambda: plan) or plan
        return _fit(plan, group, (backend, device), progress, callbacks)
    finally:
        group.leave()


def _fit(
    plan: "_Plan",
    group: ProcessGroup,
    place: tuple[str, runtime.Device],
    progress: Progress,
    callbacks: Iterable["keras.callbacks.Callback"],
) -> tuple[run.Run, Dataset]:
    """Does what a plan says, on a backend and device that have been started."""
    from kerasnorm.training.loop import Training

    backend, device = place
    config = plan.config
    dataset = prepare(config.data, config.train.seed)
    resolved = {"backend": backend}
    if config.data.data == "auto":
        resolved["data"] = dataset.name
    config = config.replace(**resolved)
    engine = make_engine(config, dataset, group)
    folder = (
        run_lock(plan.path) if plan.is_resumed else run.new_folder(plan.out, config, dataset.name)
    )

    def open_folder() -> Path:
        path = stack.enter_context(folder)
        _prepare_folder(path, plan, config)
        write_json(path / run.ENVIRONMENT, provenance.environment(backend, device))
        return path

    with ExitStack() as stack, INTERRUPTIONS.installed():
        path = group.on_first(open_folder) or plan.path
        INTERRUPTIONS.in_group = group.size > 1
        title = f"{config.model.norm} on {dataset.name}, {backend}, {device.name}"
        title += f", {group.size} processes" if group.size > 1 else ""
        training = Training(path, config, dataset, engine, progress, callbacks, group)
        try:
            training.execute(title, plan.is_resumed)
        except Exception:
            raise
        except BaseException:  # an interruption, not an error
            logger.warning(f"Stopped. Go on with: kerasnorm fit --resume {shlex.quote(str(path))}")
            raise
        group.barrier()
    return run.Run.load(path), dataset


@dataclass(frozen=True)
class _Plan:
    """What a call of `fit` is to do.

    Attributes:
        config: What to train.
        out: The folder of a new run, None for the default.
        saved: The config of the run to go on with, None for a new one.
    """

    config: Config
    out: Path | None
    saved: Config | None = None

    @property
    def is_resumed(self) -> bool:
        """Whether an old run goes on."""
        return self.saved is not None

    @property
    def path(self) -> Path:
        """The folder of the run that goes on."""
        if self.out is None:
            raise ConfigError("out: several processes need the folder of the run: --out DIR.")
        return self.out


def _plan(
    config: Config | None,
    out: Path | str | None,
    resume: Path | str | None,
    overrides: dict[str, Any],
) -> _Plan:
    folder = None if out is None else Path(out)
    if resume is not None and resume != "auto":
        if config is not None or out is not None:
            raise ConfigError("A resumed run has its own config and folder: leave out config, out.")
        path = Path(resume)
        saved = run.read_config(path)
        recipe = overrides.pop("recipe", saved.recipe)
        wanted = saved.replace(**overrides)
        return _Plan(_same_config(saved, dataclasses.replace(wanted, recipe=recipe)), path, saved)
    config = config.replace(**overrides) if config else resolve(overrides)
    if resume is None:
        return _Plan(config, folder)
    if folder is None:
        raise ConfigError("resume='auto' needs the folder of the run: out.")
    if not run.is_run(folder):
        return _Plan(config, folder)
    saved = run.read_config(folder)
    return _Plan(_same_config(saved, config), folder, saved)


def _same_config(saved: Config, wanted: Config) -> Config:
    """Returns the config of a run to resume.

    Only the devices may change, and the number of epochs may grow where the schedule does not
    depend on it.
    """
    before = flatten(saved.to_dict()) | {"recipe": saved.recipe}
    after = flatten(wanted.to_dict()) | {"recipe": wanted.recipe}
    allowed = {"device", "devices"}
    if run.has_open_end(saved) and after["epochs"] > before["epochs"]:
        allowed.add("epochs")
    for name, value in before.items():
        is_resolved = name in ("backend", "data") and after[name] == "auto"
        if name in allowed or is_resolved or after[name] == value:
            continue
        raise ConfigError(
            f"{name}: a resumed run keeps its config, {name}={value!r}. "
            f"Received: {name}={after[name]!r}. Start a new run for it."
            + (" Only a constant schedule takes more epochs." if name == "epochs" else "")
        )
    changed = {name: after[name] for name in ("device", "devices", "epochs")}
    return saved.replace(**changed)


def _prepare_folder(path: Path, plan: _Plan, config: Config) -> None:
    """Clears what a dead process left; a run that goes on is unfinished until it ends again."""
    sweep(path)
    sweep(path / run.CHECKPOINTS)
    if plan.is_resumed:
        (path / run.METRICS).unlink(missing_ok=True)
        run.write_config(path, config)


def make_engine(config: Config, dataset: Dataset, group: ProcessGroup | None = None) -> "Engine":
    """Returns the engine of a resolved config, its model freshly initialized."""
    from kerasnorm.engines import choice
    from kerasnorm.network import EQUALIZED_PIXELS, PIXELS, build

    if len(dataset.class_names) < 2:
        raise DataError(f"{dataset.source}: expected at least two classes. Received: one.")
    seed = config.train.seed
    runtime.seed_everything(seed, 0)
    mean, std = input_statistics(config.data.preprocessing, dataset.train.images)
    with (group or ProcessGroup()).scope():
        model = build(
            config.model,
            input_shape=dataset.image_shape,
            classes=len(dataset.class_names),
            mean=mean.tolist(),
            std=std.tolist(),
            input_name=EQUALIZED_PIXELS if config.data.preprocessing == "equalize" else PIXELS,
            precision=config.train.precision,
            seed=seed,
        )
        return choice.make(model, make_batches(config, dataset), config.train, group)


def make_batches(config: Config, dataset: Dataset) -> Batches:
    """Returns the training batches of a resolved config."""
    seed = config.train.seed
    fill = channel_statistics(dataset.train.images)[0] * 255
    augmentation = Augmentation(config.data, dataset.image_shape, fill, len(dataset.train), seed)
    return Batches(dataset.train, config.train.batch_size, seed, augmentation)
