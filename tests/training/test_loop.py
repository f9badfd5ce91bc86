"""What a run reports while it goes on: an epoch in a line, and steps to a progress."""

import re

import keras
import numpy as np
import pytest
from helpers import tiny

from kerasnorm.config import resolve
from kerasnorm.engines.schedule import learning_rates
from kerasnorm.training.loggers import RunLogs
from kerasnorm.training.loop import epoch_line
from kerasnorm.training.run_folder import judged

ROW = {
    "epoch": 3.0,
    "train_loss": 0.8421,
    "train_accuracy": 0.631,
    "val_loss": None,
    "val_accuracy": None,
    "test_loss": 0.7909,
    "test_accuracy": 0.719,
    "lr": 0.008,
    "seconds": 41.23,
    "images_per_second": 1212.7,
}
LINE = "epoch  3/20  train 0.842 63.1 %  test 0.791 71.9 %  lr 0.0080  41.2 s  1213 images/s"


class Recorder:
    """A progress that remembers what it received."""

    def __init__(self):
        self.calls = []

    def start(self, title, total, done=0):
        self.calls.append(("start", title, total, done))

    def advance(self, done, status=""):
        self.calls.append(("advance", done, status))

    def show(self, table):
        raise AssertionError("a run has no table")

    def finish(self):
        self.calls.append(("finish",))


class TestEpochLine:
    def test_the_whole_line(self):
        assert epoch_line(ROW, 20) == LINE
        assert epoch_line(ROW, 20, 17 * 42.0) == f"{LINE}  11:54 left"

    def test_validation_is_shown_where_it_exists(self):
        row = ROW | {"val_loss": 0.81, "val_accuracy": 0.7}
        assert "  val 0.810 70.0 %  test" in epoch_line(row, 20)

    @pytest.mark.parametrize("lr", [(0.01, "0.010"), (4e-7, "4.0e-07"), (0.0, "0.0")])
    def test_small_rates_stay_legible(self, lr):
        assert f"  lr {lr[1]}  " in epoch_line(ROW | {"lr": lr[0]}, 20)

    def test_nan_and_missing_values(self):
        row = dict.fromkeys(ROW, None) | {"epoch": 1.0}
        assert epoch_line(row, 5) == "epoch 1/5"
        assert "train nan" in epoch_line(ROW | {"train_loss": float("nan")}, 5)


def test_a_run_is_judged_by_validation_images_where_it_has_any():
    row = ROW | {"val_accuracy": 0.25, "test_accuracy": 0.5}
    assert str(judged(row)) == "validation 25.0 %"
    assert judged(row | {"val_accuracy": None}) == ("test", 0.5)
    assert judged(dict.fromkeys(row)) is None


def test_a_run_reports_each_step_and_logs_its_title_and_epochs(tmp_path, caplog):
    caplog.set_level("INFO", "kerasnorm")
    progress = Recorder()
    config = tiny.config(schedule="constant", epochs=2)
    done = tiny.train(config, out=tmp_path / "run", progress=progress)
    steps = done.metrics["steps_per_epoch"]
    first, *advances, last = progress.calls
    assert (first, last) == (("start", "training", 2 * steps, 0), ("finish",))
    # Each step, and the end of each epoch, after its evaluation.
    counts = [*range(1, steps + 1), steps, *range(steps + 1, 2 * steps + 1), 2 * steps]
    assert [call[1] for call in advances] == counts
    before, after = (f"  test {100 * row['test_accuracy']:.1f} %" for row in done.history)
    assert before != after
    ends = [""] * steps + [before] * (steps + 1) + [after]
    for (_, count, status), end in zip(advances, ends, strict=True):
        assert status.startswith("epoch 1/2  " if count <= steps else "epoch 2/2  ")
        assert status.endswith(f" images/s{end}")
    assert caplog.messages[0].startswith(f"{config.model.title}, recipe best, on shapes, ")
    first_line, last_line = (epoch_line(row, 2) for row in done.history)
    assert re.fullmatch(rf"{re.escape(first_line)}  \d+:\d\d left", caplog.messages[1])
    assert caplog.messages[2:] == [last_line]

    resumed = Recorder()
    tiny.train(resume=tmp_path / "run", epochs=3, progress=resumed)
    assert resumed.calls[0] == ("start", "training", 3 * steps, 2 * steps)
    counts = [*range(2 * steps + 1, 3 * steps + 1), 3 * steps]
    assert [call[1] for call in resumed.calls[1:-1]] == counts


def test_a_log_receives_every_weight_where_layers_of_two_models_have_one_name(
    tmp_path, monkeypatch
):
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    pixels = keras.Input((32, 32, 3))
    x = pixels
    for name in ("block1", "block2"):
        start = keras.Input(x.shape[1:])
        conv = keras.layers.Conv2D(4, 3, strides=4, name="conv")
        x = keras.Model(start, conv(start), name=name)(x)
    logits = keras.layers.Dense(10, name="head")(keras.layers.GlobalAveragePooling2D()(x))
    keras.Model(pixels, logits).save(tmp_path / "net.keras")
    logged, last = [], []
    monkeypatch.setattr(RunLogs, "write", lambda self, rows, details=None: logged.append(details))
    monkeypatch.setattr(RunLogs, "finish", lambda self, done: None)
    monkeypatch.setattr("kerasnorm.plots.draw_run", lambda done, images: None)
    catch = keras.callbacks.LambdaCallback(
        on_train_end=lambda logs: last.extend(catch.model.get_weights())
    )
    small = {name: value for name, value in tiny.TINY.items() if name != "widths"}
    network = {"network": str(tmp_path / "net.keras"), "norm": "keep", "recipe": "plain"}
    backend = {"backend": keras.backend.backend(), "log": ["tensorboard"]}
    config = resolve(small | network | backend)
    tiny.train(config, out=tmp_path / "run", callbacks=[catch])
    owners = ("block1/conv", "block2/conv", "head")
    names = [f"{owner}/{kind}" for owner in owners for kind in ("kernel", "bias")]
    weights = logged[-1].weights
    assert [*weights] == names
    for name, array in zip(names, last, strict=True):
        assert np.array_equal(weights[name], array), name


class Asks(keras.callbacks.Callback):
    """Asks for the end of the training at one event of its second epoch, and counts the steps."""

    def __init__(self, event):
        super().__init__()
        self.event, self.epoch, self.steps = event, 0, []

    def happens(self, event):
        if event == self.event and self.epoch == 1:
            self.model.stop_training = True

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        self.steps.append(0)
        self.happens("on_epoch_begin")

    def on_train_batch_begin(self, batch, logs=None):
        self.happens("on_train_batch_begin")

    def on_train_batch_end(self, batch, logs=None):
        self.steps[-1] += 1
        self.happens("on_train_batch_end")

    def on_epoch_end(self, epoch, logs=None):
        self.happens("on_epoch_end")


@pytest.mark.backend("any", slow_on="tensorflow")
@pytest.mark.parametrize("engine", ["native", "keras"])
@pytest.mark.parametrize(
    "event", ["on_epoch_begin", "on_train_batch_begin", "on_train_batch_end", "on_epoch_end"]
)
@pytest.mark.long
def test_a_training_that_a_callback_ends_counts_the_steps_that_were_taken(event, engine, tmp_path):
    config = tiny.config(epochs=4, engine=engine)
    asks = Asks(event)
    done = tiny.train(config, out=tmp_path / "run", callbacks=[asks])
    assert len(done.history) == 2
    assert asks.steps == [4, 4 if event == "on_epoch_end" else 1]
    rates = learning_rates(config.train, 4 * 4)
    trained = [60, min(16 * asks.steps[1], 60)]
    for row, first, steps, images in zip(done.history, (0, 4), asks.steps, trained, strict=True):
        assert row["images_per_second"] * row["seconds"] == pytest.approx(images)
        assert row["lr"] == pytest.approx(rates[first + steps - 1])
    metrics = done.metrics
    assert metrics["images_per_second"] * metrics["seconds"] == pytest.approx(sum(trained))


@pytest.mark.backend("any", long_on="tensorflow")
@pytest.mark.parametrize("engine", ["native", "keras"])
def test_callbacks_of_accuracy_need_no_mode_and_the_end_has_the_last_logs(engine, tmp_path):
    ends = []
    best = keras.callbacks.ModelCheckpoint(
        tmp_path / "best.keras", "val_accuracy", save_best_only=True
    )
    callbacks = [
        best,
        keras.callbacks.EarlyStopping("val_accuracy", patience=0, min_delta=1.0),
        keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: ends.append(logs),
            on_train_end=ends.append,
        ),
    ]
    config = tiny.config(engine=engine, validation=20, epochs=4)
    done = tiny.train(config, out=tmp_path / "run", callbacks=callbacks)
    assert len(done.history) == 2  # no epoch can gain more than 1
    assert best.best == max(row["val_accuracy"] for row in done.history)
    assert ends[-1] == ends[-2]


class FreezesNorms(keras.callbacks.Callback):
    """Freezes the norms before the second epoch, and has no state of its own."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            for layer in self.model.layers:
                layer.trainable = "norm" not in layer.name


class Interrupts(keras.callbacks.Callback):
    """Ends the process in the third epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


@pytest.mark.long
@pytest.mark.backend("any", slow_on="tensorflow")
@pytest.mark.parametrize("engine", ["native", "keras"])
def test_what_a_callback_froze_stays_frozen_in_a_resumed_run(engine, tmp_path):
    config = tiny.config(engine=engine, norm="bn", epochs=3)
    straight = tiny.train(config, out=tmp_path / "straight", callbacks=[FreezesNorms()])
    with pytest.raises(KeyboardInterrupt):
        tiny.train(config, out=tmp_path / "run", callbacks=[FreezesNorms(), Interrupts()])
    resumed = tiny.train(resume=tmp_path / "run", callbacks=[FreezesNorms()])
    for row, other in zip(straight.history, resumed.history, strict=True):
        assert row["test_loss"] == other["test_loss"]


@pytest.mark.long
def test_a_run_that_a_callback_ended_trains_on_only_where_more_epochs_are_asked_for(tmp_path):
    config = tiny.config(epochs=4, schedule="constant")

    def ask():
        return keras.callbacks.EarlyStopping("loss", min_delta=100, patience=1)

    ended = tiny.train(config, out=tmp_path / "run", callbacks=[ask()])
    assert len(ended.history) == 2
    (tmp_path / "run" / "metrics.json").unlink()  # as if it had been killed before its end
    again = tiny.train(resume=tmp_path / "run", callbacks=[ask()])
    assert len(again.history) == 2
    longer = tiny.train(resume=tmp_path / "run", epochs=6, callbacks=[ask()])
    assert len(longer.history) == 3  # the callback has lost its patience and asks again
    whole = tiny.train(resume=tmp_path / "run", epochs=8, callbacks=[ask()])
    assert len(whole.history) == 4
    straight = tiny.train(config, out=tmp_path / "straight")
    assert [row["test_loss"] for row in whole.history] == [
        row["test_loss"] for row in straight.history
    ]


@pytest.mark.backend("any", long_on="tensorflow")
@pytest.mark.parametrize("engine", ["native", "keras"])
def test_a_log_receives_the_rates_that_the_steps_were_taken_with(engine, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    received = []
    monkeypatch.setattr(RunLogs, "write", lambda self, rows, details=None: received.append(details))
    monkeypatch.setattr(RunLogs, "finish", lambda self, done: None)
    monkeypatch.setattr("kerasnorm.plots.draw_run", lambda done, images: None)

    def halve(epoch, logs):
        optimizer = callback.model.optimizer
        optimizer.learning_rate = float(optimizer.learning_rate) / 2

    callback = keras.callbacks.LambdaCallback(on_epoch_end=halve)
    config = tiny.config(
        epochs=3, engine=engine, schedule="constant", learning_rate=0.5**6, log=["tensorboard"]
    )
    done = tiny.train(config, out=tmp_path / "run", callbacks=[callback])
    expected = [0.5**6, 0.5**7, 0.5**8]
    assert [row["lr"] for row in done.history] == expected
    assert [details.rates for details in received[1:]] == [[rate] * 4 for rate in expected]


@pytest.mark.backend("any", long_on="tensorflow")
@pytest.mark.parametrize("engine", ["native", "keras"])
@pytest.mark.parametrize(("event", "first"), [("begin", 1), ("end", 0)])
def test_a_rate_that_a_callback_changes_is_recorded_as_the_step_was_taken(
    event, first, engine, tmp_path, monkeypatch
):
    """The callback halves it before or after each of the four steps of an epoch."""
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    received = []
    monkeypatch.setattr(RunLogs, "write", lambda self, rows, details=None: received.append(details))
    monkeypatch.setattr(RunLogs, "finish", lambda self, done: None)
    monkeypatch.setattr("kerasnorm.plots.draw_run", lambda done, images: None)

    def halve(batch, logs):
        optimizer = callback.model.optimizer
        optimizer.learning_rate = float(optimizer.learning_rate) / 2

    callback = keras.callbacks.LambdaCallback(**{f"on_train_batch_{event}": halve})
    config = tiny.config(
        epochs=2, engine=engine, schedule="constant", learning_rate=0.5**6, log=["tensorboard"]
    )
    done = tiny.train(config, out=tmp_path / "run", callbacks=[callback])
    expected = [[0.5 ** (6 + first + n + before) for n in range(4)] for before in (0, 4)]
    assert [details.rates for details in received[1:]] == expected
    assert [row["lr"] for row in done.history] == [rates[-1] for rates in expected]
