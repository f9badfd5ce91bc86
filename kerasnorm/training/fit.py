"""`fit`: from a config to a trained, saved and measured model.

Keras is imported only after `runtime.start` has chosen its backend; hence the imports inside.
"""

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kerasnorm import runtime, user_code
from kerasnorm.config import UNCOMPARED, Config, config_of_call, field_value
from kerasnorm.data import Dataset, prepare
from kerasnorm.data.augment import Augmentation
from kerasnorm.data.batches import Batches
from kerasnorm.data.preprocessing import channel_statistics, input_statistics
from kerasnorm.data.sources import locate, with_place
from kerasnorm.engines.schedule import has_open_end
from kerasnorm.errors import (
    ConfigError,
    CorruptFileError,
    DataError,
    error_text,
    expect,
    listed,
)
from kerasnorm.files import as_path, check_file, in_command, run_lock, sweep, write_json
from kerasnorm.norms import BUILT_IN, KEEP, NORMS
from kerasnorm.process_group import ProcessGroup, this_launch
from kerasnorm.progress import ConsoleProgress, Progress, counted, default_progress, in_percent
from kerasnorm.training import run, run_folder
from kerasnorm.training.loggers import RunLogs, check_loggers

if TYPE_CHECKING:
    import keras

    from kerasnorm.engines.base import Engine

logger = logging.getLogger(__name__)
UNFIT_CALLBACKS = {  # of Keras, each with the reason
    "BackupAndRestore": (
        "puts other weights in place of those that the run starts or resumes with. Leave it out: "
        "runs are saved after each epoch, and resumed with resume='auto'."
    ),
    "SwapEMAWeights": (
        "needs an optimizer that averages weights (use_ema=True), which no config makes. Leave it "
        "out."
    ),
}


def fit(
    config: Config | None = None,
    *,
    out: Path | str | None = None,
    resume: Path | str | None = None,
    callbacks: Iterable["keras.callbacks.Callback"] = (),
    plots: bool = True,
    progress: Progress | None = None,
    **overrides: Any,
) -> run.Run:
    """Trains one model, and leaves a run's folder with model, history, metrics and pictures.

    Args:
        config: What to train; by default the recipe `best`.
        out: The run's folder, new or empty; by default one under `results/runs`.
        resume: The folder of an unfinished run to resume, instead of `config` and `out`; or
            "auto": start the run in `out`, or resume it if it was started before. A run whose data
            were moved is resumed with their new place, `data`.
        callbacks: Keras callbacks; their logs hold loss, accuracy, val_*, test_* and
            learning_rate. The losses of an epoch are those of the history, cross-entropies without
            regularization terms; the `loss` of a batch holds the terms, its `entropy` does not.
            Layers that they freeze, and rates of dropout that they set, count from the next epoch.
            They must leave loss and optimizer as they are, but for a constant learning rate.
        plots: Whether to draw the pictures of the finished run into its folder; those of a run
            that is logged are drawn in any case.
        progress: Receives how far the run is, counted in steps; by default a live bar in a
            notebook, and nothing elsewhere.
            Notes are logged, see `logging`, under the logger "kerasnorm".
        **overrides: Any field of the config, named without its section; `data` may also be a tuple
            of arrays: x_train, y_train, x_test, y_test (x_val, y_val), images uint8 of shape
            (N, H, W, C) or (N, H, W), labels (N,).

    Returns:
        The finished run.

    Raises:
        ConfigError: A value is unknown or out of range, or a callback compiled the model again.
        DataError: The data are missing, damaged or unfit.
        DivergedError: The loss or a weight is no longer finite.
        RunFolderError: The folder holds another run, is in use or cannot be written.
        MissingPackageError: The backend or a logger is not installed.
    """
    launch = this_launch()
    if launch.restarts and resume is None and out is not None:
        resume = "auto"  # torchrun restarts its processes with the same command line
    plan = _plan(config, out, resume, with_place(overrides))
    check_loggers(plan.config)
    done, dataset, logs = plan.finished_run(), None, None
    if done is None:
        train = plan.config.train
        if plan.is_resumed:
            run_folder.check_place(plan.path, plan.config.data)
        backend, device = runtime.start(
            train.backend, train.device, train.devices, deterministic=train.deterministic
        )
        from kerasnorm.engines.choice import join
        from kerasnorm.training.loop import Training

        callbacks = _checked(callbacks)
        group = join(launch, train.devices)
        try:
            # A file system may show the folder to the first process before it does to another.
            plan = group.on_first(lambda: plan) or plan
            dataset = prepare(plan.config.data, plan.config.train.seed)
            if plan.is_resumed:
                run_folder.check_data(plan.path, dataset)
            place = plan.config.data.data
            config = plan.config.replace(
                backend=backend,
                data=dataset.name if place == "auto" else place,
                precision=runtime.chosen_precision(plan.config.train.precision, device),
            )
            engine = make_engine(config, dataset, group)
            _check_own_norm(config, engine.model)
            if group.is_first:
                _note_lagging_statistics(engine)
                _note_absent_classes(dataset)
            leaked = _note_leaked(dataset) if group.is_first else None
            environment = runtime.environment(backend, device)
            environment["fused_kernels"] = engine.fused_kernels
            environment["data"] = {
                "name": dataset.name,
                "source": dataset.source,
                **dataclasses.asdict(dataset.content),
                "leaked_images": leaked,
            }
            with _opened_folder(plan, config, dataset.name, environment, group) as folder:
                title = f"{config.model.title}, recipe {config.recipe}, on {dataset.name}, "
                title += f"{backend}, {device.name}"
                logger.info(title + (f", {group.size} processes" if group.size > 1 else ""))
                shown: Progress = ConsoleProgress(quiet=True)
                if group.is_first:
                    shown = progress or default_progress()
                logs = RunLogs(folder, config) if config.train.log and group.is_first else None
                training = Training(folder, config, dataset, engine, callbacks, shown, logs)
                training.execute(is_resumed=plan.is_resumed)
            done = run.Run.load(folder)
        finally:
            group.leave()
    if (plots or done.config.train.log) and launch.rank == 0:
        from kerasnorm.plots import draw_run

        draw_run(done, dataset.test.images if dataset else done.test_images())
        (logs or RunLogs(done.path, done.config)).finish(done)
    return done


def _checked(callbacks: Iterable[Any]) -> "list[keras.callbacks.Callback]":
    """Returns the callbacks of a call of `fit`, or raises a ConfigError."""
    import keras

    expected = "a list of objects of keras.callbacks.Callback"
    expect(isinstance(callbacks, Iterable), "callbacks", expected, callbacks)
    found = list(callbacks)
    is_right = all(isinstance(one, keras.callbacks.Callback) for one in found)
    expect(is_right, "callbacks", expected, found)
    for name, reason in UNFIT_CALLBACKS.items():
        if any(isinstance(one, getattr(keras.callbacks, name)) for one in found):
            raise ConfigError(f"callbacks: {name} {reason}")
    return found


@dataclass(frozen=True)
class _Plan:
    """What a call of `fit` is to do."""

    config: Config  # what to train
    out: Path | None  # the run's folder; None for the default one of a new run
    saved: Config | None = None  # the config of the run to resume; None for a new run

    @property
    def is_resumed(self) -> bool:
        """Whether an earlier run is resumed."""
        return self.saved is not None

    @property
    def path(self) -> Path:
        """The run's folder, where it must be known before the run has started."""
        if self.out is None:
            raise ConfigError("out: several processes need the folder of the run: --out DIR.")
        return self.out

    def finished_run(self) -> run.Run | None:
        """Returns the run if it has finished, nothing of it is damaged and no more is wanted."""
        saved, data = self.saved, self.config.data.data
        free = {name: field_value(self.config, name) for name in (*UNCOMPARED, "data")}
        if saved is None or self.config != saved.replace(**free):
            return None
        try:
            done = run.Run.load(self.path)
            check_file(done.path / run_folder.MODEL)
        except CorruptFileError:  # what is damaged is computed again
            return None
        logger.info(f"{done.path} has finished already.")
        if data != saved.data.data:
            run_folder.check_data(self.path, prepare(self.config.data, self.config.train.seed))
            if this_launch().rank == 0:
                with run_lock(self.path):
                    run_folder.relocate(self.path, self.config)
        return dataclasses.replace(done, config=self.config)


def _plan(
    config: Config | None,
    out: Path | str | None,
    resume: Path | str | None,
    overrides: dict[str, Any],
) -> _Plan:
    """Returns what a call of `fit` is to do; every way to resume a run goes through here."""
    if resume is None or resume == "auto":
        wanted = config_of_call(config, overrides)
        wanted = wanted.replace(data=locate(wanted.data.data))
        folder = None if out is None else as_path(out, "out")
        if resume is None:
            return _Plan(wanted, folder)
        if folder is None:
            raise ConfigError("resume: auto needs the folder of the run: --out DIR.")
        if not run_folder.is_run(folder):
            return _Plan(wanted, folder)
        saved = run_folder.read_config(folder)
    else:
        if config is not None or out is not None:
            raise ConfigError(
                "resume: a resumed run has its own config and folder; leave out --config, --out."
            )
        folder = as_path(resume, "resume")
        expect(folder.is_dir(), "resume", "a run's folder, or auto", str(resume))
        saved = run_folder.read_config(folder)
        recipe = overrides.pop("recipe", saved.recipe)
        wanted = dataclasses.replace(saved.replace(**overrides), recipe=recipe)
    has_content = run_folder.read_content(folder) is not None
    return _Plan(_resumed_config(saved, wanted, may_move=has_content), folder, saved)


def _resumed_config(saved: Config, wanted: Config, *, may_move: bool) -> Config:
    """Returns the config with which a run is resumed.

    Only the devices, the loggers and the place of the data may change, and the number of epochs may
    grow where the schedule does not depend on it. With `may_move`, the run recorded what its data
    held, so that data at another place can be compared with them.
    """
    before, after = saved.fields, wanted.fields
    allowed = {*UNCOMPARED} | ({"data"} if may_move else set())
    if after["data"] == "auto" or locate(after["data"]) == locate(before["data"]):
        after["data"] = before["data"]
    if has_open_end(saved.train) and after["epochs"] > before["epochs"]:
        allowed.add("epochs")
    for name, value in before.items():
        is_resolved = name in ("backend", "precision") and after[name] == "auto"
        if name in allowed or is_resolved or after[name] == value:
            continue
        raise ConfigError(
            f"{name}: a resumed run keeps its config, {name}={value!r}. "
            f"Received: {name}={after[name]!r}. Start a new run for it."
            + (" Only a constant schedule takes more epochs." if name == "epochs" else "")
        )
    return saved.replace(**{name: after[name] for name in allowed})


@contextmanager
def _opened_folder(
    plan: _Plan, config: Config, data_name: str, environment: dict[str, Any], group: ProcessGroup
) -> Iterator[Path]:
    """Holds the run's folder, and handles interruptions, while the block trains."""
    folder = (
        run_lock(plan.path)
        if plan.is_resumed
        else run_folder.new_folder(plan.out, config, data_name)
    )

    def prepare_folder() -> Path:
        path = stack.enter_context(folder)
        for place in (path, path / run_folder.CHECKPOINTS):
            sweep(place)
        if plan.is_resumed:  # until it ends again, the run is unfinished
            (path / run_folder.METRICS).unlink(missing_ok=True)
            run_folder.write_config(path, config)
            _note_threads(run_folder.read_environment(path).get("threads"), environment)
        write_json(path / run_folder.ENVIRONMENT, environment)
        return path

    with ExitStack() as stack, group.interruptions.installed():
        path = group.on_first(prepare_folder) or plan.path
        try:
            yield path
        except (KeyboardInterrupt, SystemExit):
            logger.warning(f"Stopped. Resume with: kerasnorm fit --resume {in_command(path)}")
            raise
        group.barrier()


def _note_absent_classes(dataset: Dataset) -> None:
    """Warns of classes that a split has no images of."""
    for split, counts in dataset.class_counts.items():
        names = [name for name, n in zip(dataset.class_names, counts, strict=True) if n == 0]
        if names:
            logger.warning(
                f"{dataset.source}: the {split} images are of {len(counts) - len(names)} of the "
                f"{len(counts)} classes: none are of {listed(names)}."
            )


def _note_leaked(dataset: Dataset) -> dict[str, int] | None:
    """Returns `dataset.leaked`, and warns of images that are both trained on and judged by."""
    leaked = dataset.leaked
    if leaked is None:
        logger.info(
            f"{dataset.source}: test images were not compared with training images, because they "
            "are stored in a file and all would have to be read."
        )
    for name, count in (leaked or {}).items():
        logger.warning(
            f"{dataset.source}: {count:,} of {len(dataset.splits[name]):,} {name} images have the "
            f"same pixels as a training image: the {name} accuracy is too high. Remove them from "
            "one of the two."
        )
    return leaked


def _note_threads(before: int | None, environment: Mapping[str, Any]) -> None:
    """Warns where a run is resumed on a CPU with another number of threads than before."""
    now, is_torch = environment["threads"], environment["backend"] == "torch"
    variable = "OMP_NUM_THREADS" if is_torch else "TF_NUM_INTRAOP_THREADS"
    if environment["device"]["kind"] == "cpu" and before not in (None, now):
        logger.warning(
            f"The run was computed on {before} threads and resumes on {now}: the last bits of its "
            f"numbers may differ from those of an uninterrupted run. {variable}={before} "
            "gives the same ones."
        )


def make_engine(config: Config, dataset: Dataset, group: ProcessGroup | None = None) -> "Engine":
    """Returns the engine of a resolved config, with a freshly initialized model."""
    from kerasnorm.engines import choice
    from kerasnorm.layers import EQUALIZED_PIXELS, PIXELS
    from kerasnorm.network import build

    if len(dataset.class_names) < 2:
        raise DataError(f"{dataset.source}: expected at least two classes. Received: one.")
    seed, preprocessing = config.train.seed, config.data.preprocessing
    runtime.seed_everything(seed, 0)
    mean, std = input_statistics(preprocessing, dataset.train.images)
    group = group or ProcessGroup()
    with group.scope():
        model = build(
            config.model,
            input_shape=dataset.image_shape,
            classes=len(dataset.class_names),
            mean=mean.tolist(),
            std=std.tolist(),
            input_name=EQUALIZED_PIXELS if preprocessing == "equalize" else PIXELS,
            precision=config.train.precision,
            seed=seed,
        )
        _note_shard_statistics(config, model, group)
        return choice.make(model, make_batches(config, dataset), config.train, group)


def _check_own_norm(config: Config, model: "keras.Model") -> None:
    """Refuses a norm of the user's own that a saved model would not hold as it is trained.

    Keras saves what `get_config` of a layer returns, and makes the layer of that.
    """
    norm = config.model.norm
    if norm == KEEP or norm in (record.name for record in BUILT_IN):
        return
    import keras

    from kerasnorm.inspection.outputs import probe_images
    from kerasnorm.layers import leaves, portable

    for layer in leaves(model) if user_code.is_named(norm) else ():
        user_code.check_class(layer, "norm")
    try:
        saved = portable(model)
    except Exception as error:  # of the user's code
        raise ConfigError(
            f"norm: the layers of {norm} cannot be made anew from their get_config(), as those of "
            f"a saved model are: {error_text(error).rstrip('.')}. Expected a constructor that "
            "takes **options for keras.layers.Layer, and a get_config() of all its other arguments."
        ) from error
    pixels = probe_images(model.input_shape[1:], 4).astype("float32")
    one, other = (keras.ops.convert_to_numpy(net(pixels, training=False)) for net in (model, saved))
    is_same = np.allclose(one, other, rtol=1e-2, atol=1e-3, equal_nan=True)
    if config.train.precision == "float32" and not is_same:
        raise ConfigError(
            f"norm: the layers of {norm} compute something else when they are made anew from their "
            "get_config(), as those of a saved model are. Expected all arguments in it."
        )


def _note_shard_statistics(config: Config, model: "keras.Model", group: ProcessGroup) -> None:
    """Warns where a norm's statistics should be those of a batch and are those of a shard."""
    import keras

    from kerasnorm.layers import leaves

    record, is_alone = NORMS[config.model.norm], group.size == 1 and group.strategy is None
    if is_alone or 0 not in record.axes or not group.is_first:
        return
    is_bn = any(isinstance(layer, keras.layers.BatchNormalization) for layer in leaves(model))
    if not is_bn:
        logger.warning(
            f"norm {record.name}: each process or device computes the statistics over its own "
            "shard of a batch, because only layers of BatchNormalization are synchronized. "
            "Results depend on the number of processes."
        )


def _note_lagging_statistics(engine: "Engine") -> None:
    """Warns where a training is too short for the moving statistics of its batch norms."""
    from kerasnorm.training.loop import initial_statistics, untrained_momenta

    steps = engine.config.epochs * engine.batches.steps
    momenta = untrained_momenta(engine.model)
    share = initial_statistics(momenta, steps)
    if share is not None:
        logger.warning(
            f"{counted(len(momenta), 'batch norm')} of momentum {max(momenta):g} per step: "
            f"after {steps} steps, {in_percent(share, 0)} % of the moving statistics are still the "
            "initial ones, and the accuracy at inference suffers. Train longer, or measure the "
            "statistics afterwards: kerasnorm recalibrate."
        )


def make_batches(config: Config, dataset: Dataset) -> Batches:
    """Returns the training batches of a resolved config."""
    seed = config.train.seed
    fill = np.zeros(dataset.image_shape[-1])
    if config.data.cutout > 0:  # only holes are filled, and the mean takes a while to measure
        fill = channel_statistics(dataset.train.images)[0] * 255
    augmentation = Augmentation(config.data, dataset.image_shape, fill, len(dataset.train), seed)
    return Batches(dataset.train, config.train.batch_size, seed, augmentation)
