"""`fit`: the run's folder, resuming, callbacks, bad input; on whichever backend this runs."""

import csv
import json
import os
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
from helpers import tiny
from hostile import changed_data

import kerasnorm
from kerasnorm import runtime
from kerasnorm.config import resolve
from kerasnorm.errors import (
    ConfigError,
    CorruptFileError,
    DataError,
    DivergedError,
    RunFolderError,
)
from kerasnorm.inspection.evaluation import Scores, predict, score
from kerasnorm.training import checkpoints, run, run_folder
from kerasnorm.training.loop import initial_statistics, untrained_momenta

SLOW_ON_TENSORFLOW = pytest.mark.backend("any", slow_on="tensorflow")


def fit(folder, callbacks=(), **overrides):
    return tiny.train(tiny.config(**overrides), out=folder, callbacks=callbacks)


def test_a_run_leaves_its_folder(tmp_path):
    done = fit(tmp_path / "run", norm="bn", validation=20)
    names = {path.name for path in done.path.iterdir()} - {".lock"}
    assert names == {
        "config.toml",
        "manifest.json",
        "environment.json",
        "history.csv",
        "metrics.json",
        "model.keras",
        "checkpoints",
    }
    with (done.path / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(0 <= float(row["val_accuracy"]) <= 1 for row in rows)
    metrics = json.loads((done.path / "metrics.json").read_text())
    assert metrics["images"] == {"train": 40, "validation": 20, "test": 20}
    assert np.sum(metrics["confusion"]) == 20
    assert metrics["definitions"].keys() <= metrics.keys()
    assert done.config.train.backend == keras.backend.backend()


UNSAVED = """
import keras

class WithoutOptions(keras.layers.Layer):
    def __init__(self, channels, name=None):
        super().__init__(name=name)

    def call(self, x):
        return x / 2

class FixedGroups(keras.layers.GroupNormalization):
    def __init__(self, **options):
        super().__init__(groups=4, **options)

class LeavesOut(keras.layers.Layer):
    def __init__(self, factor=1.0, **options):
        super().__init__(**options)
        self.factor = factor

    def call(self, x):
        return x * self.factor

    def get_config(self):
        return super().get_config()

def leaves_out(channels, name):
    return LeavesOut(0.5, name=name)

def of_a_lambda(channels, name):
    return keras.layers.Lambda(lambda x: x / 2, name=name)

def local(channels, name):
    class Local(keras.layers.Layer):
        def call(self, x):
            return x / 2

    return Local(name=name)

def whole(channels, name):
    return keras.layers.GroupNormalization(4, name=name)
"""


@pytest.mark.parametrize(
    ("norm", "message"),
    [
        ("WithoutOptions", "cannot be made anew .* 'trainable'.* Expected a constructor"),
        ("FixedGroups", "cannot be made anew .* 'groups'"),
        ("of_a_lambda", "cannot be made anew .* `Lambda`"),
        ("leaves_out", "compute something else"),
        ("local", ""),
    ],
)
@pytest.mark.backend("any")
def test_a_norm_that_no_saved_model_could_hold_is_refused_before_it_is_trained(
    tmp_path, norm, message
):
    code, out = tmp_path / "norms.py", tmp_path / "run"
    code.write_text(UNSAVED)
    expected = f"norm: the layers of .*{norm} {message}" if message else "norm: expected .*Local$"
    with pytest.raises(ConfigError, match=expected):
        fit(out, norm=f"{code}:{norm}", widths=(4,) * 10)
    assert not out.exists()


@pytest.mark.long
def test_a_norm_that_a_saved_model_holds_is_trained(tmp_path):
    code = tmp_path / "norms.py"
    code.write_text(UNSAVED)
    done = fit(tmp_path / "run", norm=f"{code}:whole", widths=(4,) * 10, epochs=1)
    assert done.evaluate().accuracy == done.metrics["test_accuracy"]


def test_pictures_are_drawn_unless_they_are_not_wanted(tmp_path):
    done = kerasnorm.fit(tiny.config(norm="bn"), out=tmp_path / "run", plots=False)
    assert not (done.path / run_folder.PLOTS).exists()
    kerasnorm.fit(resume=done.path)  # finished already: only its pictures are missing
    names = {"accuracy", "loss", "learning_rate", "confusion", "misclassified"}
    assert {path.name for path in (done.path / run_folder.PLOTS).iterdir()} == {
        f"{n}.png" for n in names
    }


@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_the_saved_model_has_the_reported_test_scores(tmp_path, norm):
    done = fit(tmp_path / "run", norm=norm)
    test = tiny.dataset().test
    scores = score(predict(done.model(), test.images), test.labels)
    assert scores.accuracy == done.metrics["test_accuracy"] == done.history[-1]["test_accuracy"]
    assert np.isclose(scores.loss, done.metrics["test_loss"], rtol=1e-4)
    mistakes = round(20 * (1 - scores.accuracy))
    assert len(done.metrics["misclassified"]) == min(10, mistakes)


def same_numbers(first, second):
    timed = ("seconds", "images_per_second")
    return [{k: v for k, v in row.items() if k not in timed} for row in first.history] == [
        {k: v for k, v in row.items() if k not in timed} for row in second.history
    ]


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path):
    first, again = (fit(tmp_path / name, recipe="era8", norm="gn") for name in "ab")
    other = fit(tmp_path / "c", recipe="era8", norm="gn", seed=1)
    assert same_numbers(first, again)
    assert not same_numbers(first, other)


class StopAfter(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.last = epoch

    def on_epoch_end(self, epoch, logs=None):
        if epoch + 1 == self.last:
            raise KeyboardInterrupt


@pytest.mark.backend("any", long_on="tensorflow")
@pytest.mark.parametrize(
    "norm",
    [
        "gn",
        *(pytest.param(n, marks=(pytest.mark.long, SLOW_ON_TENSORFLOW)) for n in ("bn", "ln")),
    ],
)
def test_an_interrupted_and_resumed_run_equals_one_never_interrupted(tmp_path, norm):
    assert_resumed_to_the_same_bytes(tmp_path, norm)


@pytest.mark.backend("tensorflow")
@pytest.mark.long
@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(
    "norm", ["gn", *(pytest.param(norm, marks=pytest.mark.slow) for norm in ("bn", "ln"))]
)
def test_a_compiled_run_is_resumed_to_the_same_bytes(tmp_path, norm):
    assert_resumed_to_the_same_bytes(tmp_path, norm)


def assert_resumed_to_the_same_bytes(tmp_path, norm):
    options = {"recipe": "era8", "norm": norm, "dropout": 0.1, "epochs": 3}
    straight = fit(tmp_path / "straight", **options)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "broken", callbacks=[StopAfter(2)], **options)
    resumed = tiny.train(resume=tmp_path / "broken")
    assert same_numbers(straight, resumed)
    states = [
        checkpoints.load(checkpoints.checkpoint_folders(done.path / run_folder.CHECKPOINTS)[-1])[0]
        for done in (straight, resumed)
    ]
    assert all(states[0][name].tobytes() == states[1][name].tobytes() for name in states[0])


def test_a_run_stopped_before_its_first_checkpoint_starts_over(tmp_path):
    class StopAtOnce(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "run", callbacks=[StopAtOnce()])
    assert len(tiny.train(resume=tmp_path / "run").history) == 2


@pytest.mark.parametrize("field", [{"norm": "bn"}, {"seed": 5}, {"epochs": 9}, {"batch_size": 8}])
def test_a_resumed_run_keeps_its_config(tmp_path, field):
    folder = run_folder.create_folder(tmp_path / "run", tiny.config(norm="gn"), "shapes")
    with pytest.raises(ConfigError, match=f"^{next(iter(field))}: a resumed run"):
        tiny.train(resume=folder, **field)


@pytest.mark.parametrize(("norm", "found"), [("bn", None), ("gn", [0, 10]), ("gn-1", [10, 10])])
def test_a_run_records_which_of_its_group_norms_are_instance_norms(tmp_path, norm, found):
    options = {"group_size": 1} if norm == "gn-1" else {}
    done = tiny.train(tiny.config(norm=norm[:2], **options), out=tmp_path / "run")
    assert done.metrics.get("instance_norms") == found
    assert ("instance_norms" in done.metrics["definitions"]) == (found is not None)


@pytest.mark.parametrize(("momentum", "share"), [(0.9, 43), (0.5, None)])
def test_a_training_too_short_for_moving_statistics_says_so(tmp_path, caplog, momentum, share):
    """Eight steps: 0.9^8 is 0.43, 0.5^8 is 0.004."""
    done = tiny.train(tiny.config(norm="bn", bn_momentum=momentum), out=tmp_path / "run")
    recorded = done.metrics.get("initial_statistics")
    assert recorded == (pytest.approx(0.9**8) if share else None)
    assert ("initial_statistics" in done.metrics["definitions"]) == (share is not None)
    found = [r.getMessage() for r in caplog.records if "moving statistics" in r.getMessage()]
    assert len(found) == (share is not None)
    assert all(f"after 8 steps, {share} %" in text for text in found)


@pytest.mark.parametrize(
    ("file_norm", "norm", "new"), [("gn", "bn", 2), ("gn", "keep", 0), ("bn", "keep", 1)]
)
def test_new_batch_norms_of_a_pretrained_network_are_warned_of(
    tmp_path, caplog, file_norm, norm, new
):
    """Of two norms the first is trained; converted, both are new."""
    layers = keras.layers
    pixels = keras.Input((32, 32, 3))
    x = layers.Conv2D(4, 3, strides=4)(pixels)
    for place in range(2):
        trained = {"moving_mean_initializer": "ones"} if place == 0 else {}
        stock = layers.BatchNormalization(momentum=0.9, **trained)
        x = stock(x) if file_norm == "bn" else layers.GroupNormalization(2)(x)
    outputs = layers.Dense(10)(layers.GlobalAveragePooling2D()(x))
    keras.Model(pixels, outputs).save(tmp_path / "net.keras")
    small = {name: value for name, value in tiny.TINY.items() if name != "widths"}
    options = {"network": str(tmp_path / "net.keras"), "pretrained": True, "norm": norm}
    config = resolve(small | options | {"backend": keras.backend.backend()})
    done = tiny.train(config, out=tmp_path / "run")
    found = [text for text in caplog.messages if "moving statistics" in text]
    assert len(found) == bool(new)
    assert all(text.startswith(f"{new} batch norm") for text in found)
    assert ("initial_statistics" in done.metrics) == bool(new)


@pytest.mark.parametrize("calls", [2, 3])
@pytest.mark.parametrize("is_nested", [False, True])
def test_a_norm_that_is_called_several_times_forgets_its_initial_statistics_sooner(
    calls, is_nested
):
    """Keras's own layer, on batches of variance 0: what is left of a variance of 1."""
    pixels, norm = keras.Input((2, 2, 3)), keras.layers.BatchNormalization(momentum=0.9)
    part = keras.Sequential([keras.Input((2, 2, 3)), norm]) if is_nested else norm
    model = keras.Model(pixels, keras.layers.Concatenate()([part(pixels) for _ in range(calls)]))
    momenta = untrained_momenta(model)
    for _ in range(2):
        model(np.zeros((4, 2, 2, 3), np.float32), training=True)
    left = keras.ops.convert_to_numpy(norm.moving_variance)
    assert np.allclose(left, initial_statistics(momenta, 2), rtol=1e-5)


@pytest.mark.long
def test_classes_that_a_split_has_no_images_of_are_named(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("KERASNORM_CACHE", str(tmp_path / "cache"))
    x = np.random.default_rng(5).integers(0, 256, (20, 8, 8, 3), np.uint8)
    train, y = x[:12], np.arange(12) % 3
    config = tiny.config(train_size=0, test_size=0, epochs=1, batch_size=4)
    for number, (labels, absent) in enumerate((((0, 0), "1, 2"), ((2, 0), "1"), ((2, 1, 0), ""))):
        caplog.clear()
        tiny.train(
            config,
            out=tmp_path / str(number),
            data=(train, y, x[12 : 12 + len(labels)], np.array(labels)),
        )
        texts = [text for text in caplog.messages if "classes: none are of" in text]
        share = f"the test images are of {len(set(labels))} of the 3 classes: none are of {absent}."
        assert [text.split(": ", 1)[1] for text in texts] == ([share] if absent else [])


def test_images_of_both_training_and_test_set_are_said_and_recorded(tmp_path, caplog, monkeypatch):
    """Test images 0 to 2 and validation image 1 are training images; one has another label."""
    monkeypatch.setenv("KERASNORM_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(5)
    x_train, x_test, x_val = (rng.integers(0, 256, (n, 8, 8, 3), np.uint8) for n in (20, 10, 8))
    y_train, y_test, y_val = (np.arange(n) % 2 for n in (20, 10, 8))
    clean = (x_train, y_train, x_test.copy(), y_test, x_val.copy(), y_val)
    x_test[:3], x_val[1] = x_train[[4, 6, 7]], x_train[19]
    x_test[3] = x_train[0] ^ 1  # nearly a training image
    options = {"train_size": 0, "test_size": 0, "epochs": 1}

    def said(data, name):
        caplog.clear()
        config = tiny.config(**options)
        done = tiny.train(config, out=tmp_path / name, data=data)
        environment = json.loads((done.path / "environment.json").read_text())
        texts = [text for text in caplog.messages if "same pixels" in text]
        return done.metrics, environment["data"]["leaked_images"], texts

    metrics, recorded, texts = said((x_train, y_train, x_test, y_test, x_val, y_val), "leak")
    assert metrics["leaked_images"] == recorded == {"validation": 1, "test": 3}
    assert "leaked_images" in metrics["definitions"]
    assert len(texts) == 2
    assert "1 of 8 validation images" in texts[0]
    assert "3 of 10 test images" in texts[1]
    metrics, recorded, texts = said(clean, "clean")
    assert ("leaked_images" in metrics, recorded, texts) == (False, {}, [])


def test_initial_statistics_are_those_after_the_steps_that_were_taken(tmp_path):
    """A callback ends the second epoch, of four steps, after its first one."""

    class Ends(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = int(self.model.optimizer.iterations) == 5

    config = tiny.config(norm="bn", bn_momentum=0.9, epochs=4)
    done = tiny.train(config, out=tmp_path / "run", callbacks=[Ends()])
    assert done.metrics["initial_statistics"] == pytest.approx(0.9**5)


@pytest.mark.parametrize(("before", "is_said"), [(0, False), (1, True)])
@pytest.mark.long
def test_another_number_of_threads_is_said_when_a_run_is_resumed(tmp_path, caplog, before, is_said):
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "run", [StopAfter(1)])
    path = tmp_path / "run" / run_folder.ENVIRONMENT
    environment = json.loads(path.read_text())
    now = environment["threads"]
    assert now >= 1
    path.write_text(json.dumps(environment | {"threads": now + before}))
    tiny.train(resume=tmp_path / "run")
    notes = [text for text in caplog.messages if text.startswith("The run was computed")]
    expected = f"The run was computed on {now + before} threads and resumes on {now}:"
    assert [note.startswith(expected) for note in notes] == [True] * is_said
    assert json.loads(path.read_text())["threads"] == now


@pytest.mark.parametrize("began", ["with", "without", "with others"])
@pytest.mark.long
def test_a_resumed_run_computes_norms_as_it_began(tmp_path, caplog, monkeypatch, began):
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "run", [StopAfter(2)])
    path = tmp_path / "run" / run_folder.ENVIRONMENT
    here = json.loads(path.read_text())["fused_kernels"]
    if here is None and began != "without":
        pytest.skip("no fused functions here")
    earlier = {"with": here, "without": None, "with others": "0123456789ab"}[began]
    load = checkpoints.load_newest

    def of_then(folder):
        state, facts = load(folder)
        assert facts["fused_kernels"] == here
        return state, facts | {"fused_kernels": earlier}

    monkeypatch.setattr(checkpoints, "load_newest", of_then)
    tiny.train(resume=tmp_path / "run")
    notes = [text for text in caplog.messages if "fused functions" in text]
    assert len(notes) == (began == "with others")
    assert json.loads(path.read_text())["fused_kernels"] == (earlier and here)


def test_what_is_resumed_must_be_there_and_brings_its_own_config(tmp_path):
    with pytest.raises(ConfigError, match=r"^resume: expected a run's folder.*missing"):
        tiny.train(resume=tmp_path / "missing")
    with pytest.raises(ConfigError, match="leave out --config, --out"):
        tiny.train(resume=tmp_path, out=tmp_path / "other")
    with pytest.raises(ConfigError, match=r"^resume: auto needs the folder"):
        tiny.train(tiny.config(), resume="auto")


@pytest.mark.backend("any", long_on="tensorflow")
def test_keras_callbacks_see_every_step_and_standard_logs(tmp_path):
    class Spy(keras.callbacks.Callback):
        events, logs = [], []

        def on_train_begin(self, logs=None):
            self.events.append("begin")
            assert self.model.optimizer is not None

        def on_train_batch_end(self, batch, logs=None):
            self.events.append(batch)

        def on_epoch_end(self, epoch, logs=None):
            self.events.append(f"epoch {epoch}")
            self.logs.append(logs)

        def on_train_end(self, logs=None):
            self.events.append("end")

    spy = Spy()
    fit(tmp_path / "run", callbacks=[spy], validation=20, batch_size=20)
    assert spy.events == ["begin", 0, 1, "epoch 0", 0, 1, "epoch 1", "end"]
    expected = {"loss", "accuracy", "val_loss", "val_accuracy", "test_loss", "test_accuracy"}
    assert spy.logs[0].keys() == expected | {"learning_rate"}


def test_early_stopping_and_model_checkpoint_work(tmp_path):
    callbacks = [
        keras.callbacks.EarlyStopping(monitor="loss", patience=0, min_delta=1e9),
        keras.callbacks.ModelCheckpoint(tmp_path / "each.keras"),
    ]
    done = fit(tmp_path / "run", callbacks=callbacks, epochs=5, norm="bn")
    assert len(done.history) == done.metrics["epochs"] == 2
    assert (tmp_path / "each.keras").is_file()


OPEN_IN_KERAS = """
import sys, keras, numpy as np
images = np.load(sys.argv[1])
for path in sys.argv[2:]:
    model = keras.saving.load_model(path, compile=False)
    np.save(path + ".npy", model.predict(images, verbose=0))
assert not any(name.partition(".")[0] == "kerasnorm" for name in sys.modules)
"""


@pytest.mark.slow  # a process with another Keras
@pytest.mark.backend("any")
def test_what_model_checkpoint_writes_opens_here_and_in_plain_keras(tmp_path):
    """Kernels that are standardized need this package, or its portable copy."""
    paths, expected = [], []
    for name, options in {
        "stock": {"norm": "gn", "weight_standardization": False},
        "standardized": {"norm": "gn", "weight_standardization": True},
    }.items():
        path = tmp_path / f"{name}.keras"
        callbacks = [keras.callbacks.ModelCheckpoint(path)]
        done = fit(tmp_path / name, callbacks=callbacks, **options)
        images = done.test_images()[:5]
        expected.append(predict(done.model(), images))
        opened = kerasnorm.load_model(path)
        np.testing.assert_allclose(predict(opened, images), expected[-1], rtol=1e-4, atol=1e-5)
        if name == "standardized":
            path = tmp_path / "portable.keras"
            kerasnorm.portable(opened).save(path)
        paths.append(path)
    np.save(tmp_path / "images.npy", images)
    command = [sys.executable, "-c", OPEN_IN_KERAS, tmp_path / "images.npy", *paths]
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(command, check=True, env=plain, cwd=tmp_path)
    for path, logits in zip(paths, expected, strict=True):
        np.testing.assert_allclose(np.load(f"{path}.npy"), logits, rtol=1e-4, atol=1e-5)


def test_the_rate_can_be_reduced_by_a_callback_where_it_is_constant(tmp_path):
    callback = keras.callbacks.ReduceLROnPlateau(
        monitor="loss", factor=0.1, patience=1, min_delta=1e9, cooldown=0
    )
    spy = keras.callbacks.LambdaCallback(
        on_train_end=lambda logs: rates.append(float(callback.model.optimizer.learning_rate))
    )
    rates = []
    done = fit(tmp_path / "run", callbacks=[callback, spy], schedule="constant", epochs=4)
    assert rates[0] < 0.01
    assert done.history[0]["lr"] > done.history[-1]["lr"]


def test_a_loss_that_is_not_finite_before_any_step_is_no_matter_of_the_rate(tmp_path):
    (tmp_path / "lost.py").write_text(
        "import keras\n"
        "class Lost(keras.layers.Layer):\n"
        "    def call(self, x):\n"
        "        return x * float('nan')\n"
    )
    with pytest.raises(DivergedError, match="No weight has changed yet") as caught:
        tiny.train(tiny.config(norm=f"{tmp_path}/lost.py:Lost"), out=tmp_path / "run")
    assert "learning-rate" not in str(caught.value)


def test_a_diverging_run_says_so_and_leaves_no_model(tmp_path):
    with pytest.raises(DivergedError, match="smaller --learning-rate"):
        fit(tmp_path / "run", optimizer="sgd", learning_rate=1e30, schedule="constant", norm="none",
            weight_decay=0.0)  # fmt: skip
    assert not (tmp_path / "run" / run_folder.MODEL).exists()


@pytest.mark.parametrize(
    "override",
    [{"batch_size": 61}, {"groups": 3}, {"translate": 32}, {"validation": 55, "batch_size": 16}],
)
def test_a_bad_config_leaves_no_folder(tmp_path, override):
    with pytest.raises((ConfigError, ValueError), match=next(iter(override))):
        fit(tmp_path / "run", **override)
    assert not (tmp_path / "run").exists()


def test_a_taken_folder_is_kept(tmp_path):
    fit(tmp_path / "run")
    before = (tmp_path / "run" / run_folder.HISTORY).read_bytes()
    with pytest.raises(RunFolderError):
        fit(tmp_path / "run")
    assert (tmp_path / "run" / run_folder.HISTORY).read_bytes() == before


def move(folder):
    folder.rename(folder.with_name("moved"))


@pytest.mark.parametrize("epoch", [pytest.param(1, marks=pytest.mark.long), 2])
@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(move, marks=pytest.mark.long),
        shutil.rmtree,
        pytest.param(lambda path: (path / "config.toml").unlink(), marks=pytest.mark.long),
    ],
)
def test_a_run_whose_folder_is_gone_ends_and_writes_nothing_there(harm, epoch, tmp_path):
    place, moved = tmp_path / "run", tmp_path / "moved"
    config = tiny.config(epochs=3)
    acts = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda number, logs: harm(place) if number == epoch else None
    )
    with pytest.raises(RunFolderError, match=r"moved or removed.*--resume PLACE"):
        tiny.train(config, out=place, callbacks=[acts])
    left = {path.name for path in tmp_path.rglob("epoch-*")}
    assert left in (set(), {f"epoch-{number:03d}" for number in range(1, epoch + 1)})
    assert harm not in (move, shutil.rmtree) or not place.exists()
    if harm is move:
        tiny.train(resume=moved)
        losses = [
            [row["train_loss"] for row in run.Run.load(folder).history]
            for folder in (moved, tiny.train(config, out=tmp_path / "whole").path)
        ]
        assert losses[0] == losses[1]


@pytest.mark.parametrize(
    "preprocessing",
    [
        "standardize",
        "equalize",
        *(pytest.param(n, marks=pytest.mark.long) for n in ("scale", "none")),
    ],
)
def test_every_preprocessing_trains_and_travels_with_the_model(tmp_path, preprocessing):
    done = fit(tmp_path / "run", preprocessing=preprocessing, epochs=1)
    name = done.model().inputs[0].name
    assert name == ("equalized_pixels" if preprocessing == "equalize" else "pixels")


@pytest.mark.long
def test_other_shapes_of_images_train(tmp_path):
    rng = np.random.Generator(np.random.PCG64(0))
    arrays = {
        f"{axis}_{part}": rng.integers(0, high, (30, *shape)).astype(np.uint8)
        for part in ("train", "test")
        for axis, high, shape in (("x", 256, (17, 21)), ("y", 3, ()))
    }
    np.savez(tmp_path / "gray.npz", **arrays)
    done = fit(tmp_path / "run", data=str(tmp_path / "gray.npz"), train_size=0, test_size=0)
    assert done.model().input_shape == (None, 17, 21, 1)
    assert done.model().output_shape == (None, 3)


@pytest.mark.backend("any", long_on="tensorflow")
def test_mixed_precision_trains_and_saves_a_float32_model(tmp_path):
    done = fit(tmp_path / "run", precision="mixed_bfloat16", norm="gn", epochs=1, validation=20)
    assert {layer.compute_dtype for layer in done.model().layers} == {"float32"}
    for split in ("val", "test"):  # bfloat16 has 8 bits
        scores = done.evaluate(split={"val": "validation"}.get(split, split))
        found = done.metrics[f"{split}_loss"], done.metrics[f"{split}_accuracy"]
        assert found == pytest.approx(scores, rel=1e-5)
        assert found[0] != pytest.approx(done.history[-1][f"{split}_loss"], rel=1e-5)


@pytest.mark.long
def test_auto_records_the_precision_that_it_takes_and_keeps_it(tmp_path, monkeypatch):
    config = tiny.config(norm="bn", precision="auto")
    monkeypatch.setattr(runtime, "_cpu", lambda threads: runtime.Device("cpu", "CPU", True))
    with pytest.raises(KeyboardInterrupt):
        tiny.train(config, out=tmp_path / "run", resume="auto", callbacks=[StopAfter(1)])
    assert run_folder.read_config(tmp_path / "run").train.precision == "mixed_bfloat16"
    monkeypatch.undo()  # resumed where the processor does not multiply it
    done = tiny.train(config, out=tmp_path / "run", resume="auto")
    straight = fit(tmp_path / "straight", norm="bn", precision="mixed_bfloat16")
    assert same_numbers(done, straight)
    with pytest.raises(ConfigError, match=r"^precision: a resumed run"):
        tiny.train(config, out=tmp_path / "run", resume="auto", precision="float32")


@pytest.mark.long
def test_restored_weights_are_the_ones_that_are_measured(tmp_path):
    class Restore(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.first = self.model.get_weights()

        def on_train_end(self, logs=None):
            self.model.set_weights(self.first)

    done = fit(tmp_path / "run", callbacks=[Restore()], norm="gn", learning_rate=0.05)
    test = tiny.dataset().test
    scores = score(predict(done.model(), test.images), test.labels)
    assert np.isclose(done.metrics["test_loss"], scores.loss, rtol=1e-4)
    assert not np.isclose(done.history[-1]["test_loss"], scores.loss, rtol=1e-4)


def test_a_changed_config_file_is_not_resumed(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "run", callbacks=[StopAfter(2)], epochs=3, learning_rate=0.01)
    path = tmp_path / "run" / run_folder.CONFIG
    path.write_text(path.read_text().replace("learning_rate = 0.01", "learning_rate = 0.02"))
    with pytest.raises(CorruptFileError, match=r"config\.toml is damaged or was changed"):
        tiny.train(resume=tmp_path / "run")


def test_a_loss_that_is_not_finite_after_an_epoch_is_a_divergence(tmp_path, monkeypatch):
    monkeypatch.setattr("kerasnorm.training.loop.score", lambda logits, labels: Scores(np.nan, 0.1))
    with pytest.raises(DivergedError, match="after epoch 1"):
        fit(tmp_path / "run", norm="bn")
    assert list((tmp_path / "run").glob("checkpoints/*")) == []


def states_of(*runs):
    folders = [
        checkpoints.checkpoint_folders(done.path / run_folder.CHECKPOINTS)[-1] for done in runs
    ]
    return [{k: v.tobytes() for k, v in checkpoints.load(path)[0].items()} for path in folders]


@pytest.mark.long
def test_more_epochs_go_on_where_the_schedule_allows_it(tmp_path):
    options = {"schedule": "constant", "norm": "bn", "dropout": 0.1}
    straight = fit(tmp_path / "straight", epochs=3, **options)
    fit(tmp_path / "short", epochs=1, **options)
    longer = tiny.train(resume=tmp_path / "short", epochs=3)
    assert longer.config.train.epochs == 3
    assert same_numbers(straight, longer)
    first, second = states_of(straight, longer)
    assert first == second
    with pytest.raises(ConfigError, match=r"^epochs: a resumed run"):
        tiny.train(resume=tmp_path / "short", epochs=2)


def test_auto_starts_goes_on_and_finds_it_finished(tmp_path):
    config, folder = tiny.config(norm="gn", epochs=3), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        tiny.train(config, out=folder, resume="auto", callbacks=[StopAfter(2)])
    resumed = tiny.train(config, out=folder, resume="auto")
    before = (folder / run_folder.MODEL).stat().st_mtime_ns
    assert tiny.train(config, out=folder, resume="auto").history == resumed.history
    assert (folder / run_folder.MODEL).stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match=r"^seed: a resumed run"):
        tiny.train(config, out=folder, resume="auto", seed=3)
    (folder / run_folder.MODEL).write_bytes(b"damaged")
    assert same_numbers(tiny.train(config, out=folder, resume="auto"), resumed)
    assert resumed.model().count_params() > 0


@pytest.mark.long
def test_callbacks_go_on_where_they_were(tmp_path):
    class Own(keras.callbacks.Callback):
        seen = None

        def on_train_begin(self, logs=None):
            self.seen = []

        def on_epoch_end(self, epoch, logs=None):
            self.seen.append((epoch, np.float32(logs["loss"])))

    def callbacks():
        return [
            keras.callbacks.EarlyStopping(
                monitor="loss", patience=3, min_delta=1e9, restore_best_weights=True
            ),
            keras.callbacks.ReduceLROnPlateau(monitor="loss", patience=2, min_delta=1e9),
            Own(),
        ]

    options = {"schedule": "constant", "epochs": 9, "norm": "bn"}
    straight = callbacks()
    first = fit(tmp_path / "straight", callbacks=straight, **options)
    assert len(first.history) == 4
    for stop in (1, 2, 3, 4):
        folder, resumed = tmp_path / f"broken{stop}", callbacks()
        with pytest.raises(KeyboardInterrupt):
            fit(folder, callbacks=[*callbacks(), StopAfter(stop + 1 if stop < 4 else 4)], **options)
        second = tiny.train(resume=folder, callbacks=resumed)
        assert same_numbers(first, second)
        assert second.metrics["test_loss"] == first.metrics["test_loss"]
        assert resumed[2].seen == straight[2].seen
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "lost", callbacks=[*callbacks(), StopAfter(2)], **options)
    with pytest.raises(ConfigError, match="EarlyStopping, which has a state"):
        tiny.train(resume=tmp_path / "lost")


def test_a_divergence_names_step_rate_and_layer_and_leaves_the_last_checkpoint(tmp_path):
    class Poison(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.is_second = epoch == 1

        def on_train_batch_begin(self, batch, logs=None):
            if self.is_second and batch == 2:
                kernel = self.model.get_layer("convblock2_conv2").kernel
                kernel.assign(kernel * np.nan)

    with pytest.raises(DivergedError, match=r"epoch 2, step \d, at a learning rate of 0\.0.*"
                       r"kernel of layer convblock2_conv2"):  # fmt: skip
        fit(tmp_path / "run", callbacks=[Poison()], norm="bn", epochs=3)
    assert checkpoints.load_newest(tmp_path / "run" / run_folder.CHECKPOINTS)[1]["epoch"] == 1


FOLDERS = {"train_size": 0, "test_size": 0, "batch_size": 5, "norm": "gn", "epochs": 3}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A folder with the data "d", a run on them, and one like it that was stopped."""
    folder = tmp_path_factory.mktemp("stopped")
    options = {**FOLDERS, "data": str(changed_data.write(folder / "d"))}
    fit(folder / "straight", **options)
    with pytest.raises(KeyboardInterrupt):
        fit(folder / "run", callbacks=[StopAfter(2)], **options)
    return folder


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@SLOW_ON_TENSORFLOW
@pytest.mark.parametrize("changed", changed_data.CHANGED, ids=lambda item: item.name)
def test_a_run_is_not_resumed_on_other_data_than_it_saw(tmp_path, stopped, changed):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    place, before = changed.make(tmp_path), files(tmp_path / "run")
    with pytest.raises(DataError) as error:
        tiny.train(resume=tmp_path / "run", data=str(place))
    assert changed.expected in str(error.value)
    assert files(tmp_path / "run") == before


def test_changed_data_are_refused_at_their_old_place_too(tmp_path, stopped):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    for name in ("run", "straight"):
        config = run_folder.read_config(tmp_path / name)
        run_folder.relocate(tmp_path / name, config.replace(data=str(tmp_path / "d")))
    (tmp_path / "d/test/dog/0.png").unlink()
    with pytest.raises(DataError, match="11 test images instead of 12"):
        tiny.train(resume=tmp_path / "run")
    options = {**FOLDERS, "data": str(tmp_path / "d")}
    with pytest.raises(DataError, match="11 test images instead of 12"):
        tiny.train(tiny.config(**options), out=tmp_path / "run", resume="auto")
    assert run.Run.load(tmp_path / "straight").test_images() is None


@pytest.mark.long
@SLOW_ON_TENSORFLOW
def test_a_run_is_resumed_where_its_data_were_moved_to(tmp_path, stopped):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    (tmp_path / "d").rename(tmp_path / "my data")
    resumed = tiny.train(resume=tmp_path / "run", data=str(tmp_path / "my data"))
    assert same_numbers(resumed, run.Run.load(stopped / "straight"))
    assert resumed.test_images().shape == (12, 8, 8, 3)


@SLOW_ON_TENSORFLOW
@pytest.mark.parametrize("same", changed_data.SAME, ids=lambda item: item.name)
def test_the_same_data_elsewhere_are_those_of_a_finished_run(tmp_path, stopped, same):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    again = tiny.train(resume=tmp_path / "straight", data=str(same.make(tmp_path)))
    assert again.history == run.Run.load(stopped / "straight").history
    assert again.test_images().shape == (12, 8, 8, 3)


def test_a_run_may_be_told_where_its_data_are_after_it_has_finished(tmp_path, stopped):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    done, place = run.Run.load(tmp_path / "straight"), tmp_path / "new place"
    before = files(done.path)
    (tmp_path / "d").rename(place)
    shutil.copytree(place, tmp_path / "d")
    shutil.rmtree(tmp_path / "d/train/dog")
    shutil.rmtree(tmp_path / "d/test/dog")
    with pytest.raises(DataError, match="the classes a b, crème, ear instead of"):
        tiny.train(resume=done.path, data=str(tmp_path / "d"))
    assert files(done.path) == before
    moved = tiny.train(resume=done.path, data=str(place))
    assert moved.config.data.data == str(place)
    assert run.Run.load(done.path).config == moved.config
    changed = {path.name for path, content in files(done.path).items() if before[path] != content}
    assert changed == {run_folder.CONFIG, "manifest.json"}
    assert moved.test_images().shape == (12, 8, 8, 3)


@pytest.mark.parametrize("asked", [{"device": "auto"}, {"device": "cuda:7"}, {"devices": 2}])
def test_a_finished_run_is_not_evaluated_again_on_another_device(tmp_path, stopped, asked):
    shutil.copytree(stopped / "straight", tmp_path / "run")
    before = files(tmp_path / "run")
    again = tiny.train(resume=tmp_path / "run", **asked)
    assert again.metrics == run.Run.load(stopped / "straight").metrics
    assert files(tmp_path / "run") == before


def test_a_relative_place_is_recorded_in_full(tmp_path, monkeypatch):
    data = changed_data.write(tmp_path / "d")
    monkeypatch.chdir(tmp_path)
    done = fit("run", **FOLDERS | {"data": "d/", "epochs": 1})
    assert done.config.data.data == str(data)
    environment = json.loads((tmp_path / "run" / run_folder.ENVIRONMENT).read_text())
    assert environment["data"]["source"] == str(data)
    assert environment["data"]["class_names"] == list(changed_data.CLASSES)
    assert environment["data"]["counts"] == {"train": [5] * 4, "test": [3] * 4}
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run.Run.load("../run").test_images().shape == (12, 8, 8, 3)


def of_an_earlier_version(folder, data):
    """Makes a run look as if it was written before runs recorded what their data held."""
    config = run_folder.read_config(folder).replace(data=data)
    run_folder.write_config(folder, config)
    environment = json.loads((folder / run_folder.ENVIRONMENT).read_text())
    del environment["data"]
    (folder / run_folder.ENVIRONMENT).write_text(json.dumps(environment))
    for place in checkpoints.checkpoint_folders(folder / run_folder.CHECKPOINTS):
        state, facts = checkpoints.load(place)
        checkpoints.save(place.parent, state, facts | {"config": config.hash()})


def test_a_run_of_an_earlier_version_is_resumed(tmp_path, stopped, monkeypatch):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    of_an_earlier_version(tmp_path / "run", "d")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^data: a resumed run keeps its config"):
        tiny.train(resume="run", data="elsewhere")
    resumed = tiny.train(resume="run", data="./d/")
    assert same_numbers(resumed, run.Run.load(stopped / "straight"))


@pytest.mark.parametrize("changed", ["image removed", "images in another order", "class renamed"])
def test_no_image_of_changed_data_is_shown_for_a_run_of_an_earlier_version(
    tmp_path, stopped, changed, caplog
):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    data = tmp_path / "d"
    of_an_earlier_version(tmp_path / "straight", str(data))
    done = run.Run.load(tmp_path / "straight")
    done.metrics["misclassified"] = [{"index": 11, "true": 3, "predicted": 0, "confidence": 0.5}]
    assert done.test_images().shape == (12, 8, 8, 3)
    if changed == "image removed":
        (data / "test/ear/0.png").unlink()
    elif changed == "class renamed":
        for half in ("train", "test"):
            (data / half / "ear").rename(data / half / "eel")
    else:
        done.metrics["misclassified"][0]["true"] = 2
    assert done.test_images() is None
    assert "is left as it is" in caplog.messages[-1]
