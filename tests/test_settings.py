"""Keras settings of the whole process change no result: they are the user's, for other models."""

import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import tiny
from helpers.command import call

from kerasnorm.data.batches import Batches
from kerasnorm.engines import choice
from kerasnorm.formats.archive import open_model, save_model
from kerasnorm.network import build_model

pytestmark = pytest.mark.backend("any")

SETTINGS = {
    "float64": {"floatx": "float64", "epsilon": 1e-2},
    "half": {"floatx": "float16", "dtype_policy": "mixed_float16"},
    "brain": {"dtype_policy": "mixed_bfloat16", "image_data_format": "channels_first"},
}


@contextlib.contextmanager
def settings(name):
    """Sets some of Keras's settings for the block, as a user's program would."""
    wanted = {"dtype_policy": "float32", **SETTINGS[name]}
    before = {key: getattr(keras.config, key)() for key in wanted}
    for key, value in wanted.items():
        getattr(keras.config, f"set_{key}")(value)
    try:
        yield
        now = {key: getattr(keras.config, key)() for key in wanted}
        now["dtype_policy"] = now["dtype_policy"].name
        assert now == wanted  # they are still the user's
    finally:
        for key, value in before.items():
            getattr(keras.config, f"set_{key}")(value)


def results(engine, folder):
    """Returns losses, weights and the saved model's logits of a tiny training."""
    config = tiny.config(engine=engine, optimizer="muon", schedule="constant", learning_rate=0.003)
    data = tiny.dataset()
    model = build_model("bn", widths=tiny.WIDTHS, dropout=0.1, dropout_kind="spatial", l2=1e-3)
    made = choice.make(model, Batches(data.train, 16, 0), config.train)
    listener = tiny.Listener()
    found = [*made.train_epoch(0, listener), listener.losses, *model.get_weights()]
    save_model(model, folder / "model.keras", {})
    return [*found, open_model(folder / "model.keras").predict(data.test.images)]


@functools.cache
def stock(engine):
    with tempfile.TemporaryDirectory() as folder:
        return results(engine, Path(folder))


SLOW_ON_TENSORFLOW = pytest.mark.backend("any", slow_on="tensorflow")


@pytest.mark.backend("any", long_on="tensorflow")
@pytest.mark.parametrize(
    ("engine", "name"),
    [
        *(("native", name) for name in SETTINGS),
        ("keras", "half"),
        *(pytest.param("keras", name, marks=SLOW_ON_TENSORFLOW) for name in ("float64", "brain")),
    ],
)
@pytest.mark.long
def test_settings_change_no_digit_of_a_training(engine, name, tmp_path):
    expected = stock(engine)
    with settings(name):
        found = results(engine, tmp_path)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def user_model():
    """A model as people write them; its operations read the layout and the types at each call."""
    image = keras.Input((8, 8, 3), dtype="float32")
    x = keras.layers.Conv2D(4, 3, kernel_initializer=keras.initializers.Ones())(image / 255.0)
    x = keras.ops.max_pool(x, 2)
    x = keras.layers.LayerNormalization()(keras.layers.BatchNormalization()(x))
    ends = keras.initializers.RandomNormal(seed=0)
    inside = keras.Sequential(
        [keras.Input(x.shape[1:]), keras.layers.Flatten(), keras.layers.Dense(3, None, True, ends)]
    )
    return keras.Model(image, 2.0 * inside(x))


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_change_no_digit_of_a_model_of_others(name, tmp_path):
    user_model().save(tmp_path / "model.keras")
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    expected = open_model(tmp_path / "model.keras").predict(images)
    with settings(name):
        found = open_model(tmp_path / "model.keras").predict(images)
    np.testing.assert_array_equal(found, expected)


COMMANDS = """
import contextlib, json, sys
from kerasnorm.cli import main
first, last = json.loads(sys.argv[1])
sys.argv = ["kerasnorm", *first]
with contextlib.redirect_stdout(sys.stderr):
    try:
        main()
    except SystemExit as end:
        assert not end.code
sys.argv = ["kerasnorm", *last]
main()
"""


@pytest.mark.long
@SLOW_ON_TENSORFLOW
def test_a_keras_json_of_other_settings_stops_no_command(tmp_path):
    file = {
        "floatx": "float16",
        "epsilon": 1e-2,
        "backend": keras.backend.backend(),
        "image_data_format": "channels_first",
    }
    (tmp_path / "keras.json").write_text(json.dumps(file))
    run = tmp_path / "run"
    options = "--data shapes --train-size 60 --test-size 20 --epochs 1 --batch-size 16"
    widths = ["--widths", ",".join(map(str, tiny.WIDTHS))]
    words = ["evaluate", str(run), "--json"]
    commands = [["fit", *options.split(), *widths, "--out", str(run)], words]
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(commands)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"KERAS_HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    measured = json.loads((run / "metrics.json").read_text())
    other = json.loads(done.stdout)
    assert other == json.loads(call(*words)[0])
    assert other["loss"] == measured["test_loss"]
    assert other["accuracy"] == measured["test_accuracy"]
