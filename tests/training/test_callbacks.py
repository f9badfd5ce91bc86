"""Keras callbacks in a run: the hooks, arguments and effects that they have under `model.fit`."""

import math

import keras
import numpy as np
import pytest
from helpers import tiny

from kerasnorm.errors import ConfigError

HOOKS = [
    f"on_{phase}_{moment}"
    for phase in ("train", "epoch", "train_batch", "test", "test_batch")
    for moment in ("begin", "end")
]
BEFORE_THE_END = [hook for hook in HOOKS if hook not in ("on_train_end", "on_epoch_end")]
BATCH = 16  # of 60 images: four steps
# What a run has beside the logs of `model.fit`, or calls by another name.
OTHER_NAMES = {
    "entropy": None,
    "learning_rate": None,
    "test_loss": "val_loss",
    "test_accuracy": "val_accuracy",
}


class Acts(keras.callbacks.Callback):
    """Records every hook, and acts in the first call of one of them."""

    def __init__(self, hook=None, act=None):
        super().__init__()
        self.calls = []
        self.act = act
        for name in HOOKS:
            setattr(self, name, self.record(name, acts=name == hook))

    def record(self, hook, *, acts):
        def call(*numbers, logs=None):
            if isinstance(numbers[-1], dict):
                *numbers, logs = numbers
            is_first = all(hook != name for name, *_ in self.calls)
            epochs = [*vars(self.model.history).get("epoch", ())]
            self.calls.append((hook, *numbers, self.params, epochs, [*logs]))
            if acts and is_first:
                self.act(self.model)

        return call

    def in_words_of_keras(self):
        """Returns the calls, with the logs that `model.fit` has too."""
        return [
            (*call, sorted(name for k in keys if (name := OTHER_NAMES.get(k, k))))
            for *call, keys in self.calls
        ]


def stop(model):
    model.stop_training = True


OFTEN_TRIED = [
    *(("native", hook) for hook in (None, "on_epoch_begin", "on_train_batch_end")),
    ("keras", None),
]


@pytest.mark.backend("any", slow_on="tensorflow")
@pytest.mark.parametrize(
    ("engine", "stops_in"),
    [
        pytest.param(*case, marks=() if case in OFTEN_TRIED else pytest.mark.long)
        for case in [
            *(("native", hook) for hook in (None, *HOOKS)),
            *(("keras", hook) for hook in (None, "on_train_begin", "on_epoch_begin")),
        ]
    ],
)
def test_hooks_come_as_from_fit_whichever_of_them_stops_the_training(engine, stops_in, tmp_path):
    ours, theirs = Acts(stops_in, stop), Acts(stops_in, stop)
    pixels = keras.Input((32, 32, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(pixels))
    model = keras.Model(pixels, keras.layers.Dense(10)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=["accuracy"])
    data = tiny.dataset()
    model.fit(
        *(data.train.images, data.train.labels, BATCH),
        epochs=2,
        verbose=0,
        callbacks=[theirs],
        validation_data=(data.test.images, data.test.labels),
        validation_batch_size=len(data.test),  # a run evaluates each split as one batch
    )
    config = tiny.config(engine=engine, batch_size=BATCH)
    tiny.train(config, out=tmp_path / "run", callbacks=[ours])
    assert ours.in_words_of_keras() == theirs.in_words_of_keras()


class OwnBackup(keras.callbacks.BackupAndRestore):
    pass


@pytest.mark.parametrize(
    "make",
    [
        keras.callbacks.BackupAndRestore,
        OwnBackup,
        lambda path: keras.callbacks.SwapEMAWeights(),
        lambda path: keras.callbacks.SwapEMAWeights(swap_on_epoch=True),
    ],
)
def test_callbacks_of_keras_that_cannot_do_their_work_in_a_run_are_refused(make, tmp_path):
    with pytest.raises(ConfigError, match=r"^callbacks: (BackupAnd|SwapEMA).*Leave it out"):
        tiny.train(tiny.config(), out=tmp_path / "run", callbacks=[make(tmp_path / "backup")])
    assert not [*tmp_path.iterdir()]


class Opens(keras.callbacks.CSVLogger):
    """A class of the user's own with an open file."""


@pytest.mark.long
def test_only_of_the_users_own_callbacks_it_is_said_what_is_not_restored(tmp_path, caplog):
    config = tiny.config(epochs=1, schedule="constant")
    for kind in (keras.callbacks.CSVLogger, Opens):
        place = tmp_path / kind.__name__
        for options in ({"config": config, "out": place}, {"resume": place, "epochs": 2}):
            log = kind(tmp_path / f"{kind.__name__}.csv", append=True)
            tiny.train(**options, callbacks=[log])
        lines = (tmp_path / f"{kind.__name__}.csv").read_text().splitlines()
        assert [line.partition(",")[0] for line in lines] == ["epoch", "0", "1"]
    warned = [text for text in caplog.messages if "could not be restored" in text]
    assert [text.partition(":")[0] for text in warned] == ["Opens"]


CHANGES = {
    "compiled the model again": lambda model: model.compile(model.optimizer, model.loss),
    "replaced the optimizer": lambda model: setattr(model, "optimizer", keras.optimizers.SGD()),
    "set learning_rate to a schedule": lambda model: setattr(
        model.optimizer, "learning_rate", keras.optimizers.schedules.CosineDecay(0.1, 10)
    ),
    "set weight_decay of the optimizer": lambda model: setattr(
        model.optimizer, "weight_decay", 0.5
    ),
    "set momentum of the optimizer": lambda model: setattr(model.optimizer, "momentum", 0.5),
}


@pytest.mark.backend("any", slow_on="tensorflow")
@pytest.mark.parametrize(
    ("engine", "change", "hook"),
    [
        *(("native", change, "on_epoch_end") for change in CHANGES),
        *(
            pytest.param("native", "compiled the model again", hook, marks=pytest.mark.long)
            for hook in BEFORE_THE_END
        ),
        ("keras", "replaced the optimizer", "on_train_batch_end"),
        pytest.param(
            *("keras", "replaced the optimizer", "on_train_begin"), marks=pytest.mark.long
        ),
    ],
)
def test_a_callback_that_changes_the_compiled_model_is_refused(engine, change, hook, tmp_path):
    config = tiny.config(
        engine=engine, batch_size=BATCH, optimizer="sgd", schedule="constant", epochs=2
    )
    with pytest.raises(ConfigError, match=f"Received: a callback that {change}"):
        tiny.train(config, out=tmp_path / "run", callbacks=[Acts(hook, CHANGES[change])])
    assert not (tmp_path / "run" / "history.csv").exists()  # written with the first checkpoint


def test_what_a_callback_does_after_training_counts_for_nothing_in_the_run(tmp_path):
    acts = Acts("on_train_end", CHANGES["replaced the optimizer"])
    done = tiny.train(tiny.config(norm="bn", epochs=1), out=tmp_path / "run", callbacks=[acts])
    steps = done.metrics["steps_per_epoch"]
    assert done.metrics["initial_statistics"] == pytest.approx(0.9**steps)


# What a callback may do between two steps, each given the model and the number of the step.
BETWEEN_STEPS = {
    "reads": lambda model, step: None,
    "sets the rate": lambda model, step: setattr(
        model.optimizer, "learning_rate", 0.01 * 1.5**step
    ),
    "clips weights": lambda model, step: model.set_weights(
        [np.clip(weight, -0.1, 0.1) for weight in model.get_weights()]
    ),
    "stops": lambda model, step: setattr(model, "stop_training", step == 2),
}


class BetweenSteps(keras.callbacks.Callback):
    """Acts in one hook of the batches, and keeps what it could read there."""

    def __init__(self, hook, act, form):
        super().__init__()
        self.act, self.seen = act, []
        if form == "method":
            methods = {hook: lambda self, step, logs=None: self.hook(step)}
            self.__class__ = type("Own", (BetweenSteps,), methods)
        else:
            setattr(self, hook, lambda step, logs=None: self.hook(step))

    def hook(self, step):
        optimizer = self.model.optimizer
        numbers = [step, optimizer.iterations, optimizer.learning_rate, self.model.weights[0]]
        self.seen += [float(np.mean(keras.ops.convert_to_numpy(number))) for number in numbers]
        self.act(self.model, step)


@pytest.mark.backend("any", long_on="tensorflow")
@pytest.mark.parametrize(
    ("hook", "act", "form"),
    [
        *(
            pytest.param(
                *("on_train_batch_end", act, "method"),
                marks=() if act in ("sets the rate", "clips weights") else pytest.mark.long,
            )
            for act in BETWEEN_STEPS
        ),
        *(
            pytest.param(hook, "sets the rate", form, marks=pytest.mark.long)
            for hook in ("on_batch_begin", "on_batch_end", "on_train_batch_begin")
            for form in ("method", "attribute")
        ),
    ],
)
def test_a_callback_reads_and_changes_every_step_as_under_fit(hook, act, form, tmp_path):
    seen, rows = [], []
    for engine in ("native", "keras"):
        config = tiny.config(
            engine=engine, batch_size=BATCH, epochs=1, schedule="constant", optimizer="sgd"
        )
        callback = BetweenSteps(hook, BETWEEN_STEPS[act], form)
        done = tiny.train(config, out=tmp_path / engine, callbacks=[callback])
        seen.append(callback.seen)
        rows.append([done.history[0][name] for name in ("train_loss", "test_loss", "lr")])
    assert len(seen[0]) == len(seen[1]) > 0
    np.testing.assert_allclose(seen[0], seen[1], rtol=1e-3)
    np.testing.assert_allclose(rows[0], rows[1], rtol=1e-3)


class EvaluatesOthers(keras.callbacks.Callback):
    """Puts other weights into the model while it is evaluated, as averages of weights are."""

    def on_test_begin(self, logs=None):
        self.own = self.model.get_weights()
        self.model.set_weights([np.zeros_like(weight) for weight in self.own])

    def on_test_end(self, logs=None):
        self.model.set_weights(self.own)


@pytest.mark.backend("any", long_on="tensorflow")
@pytest.mark.parametrize("engine", ["native", "keras"])
def test_weights_that_a_callback_swaps_for_the_evaluation_are_evaluated(engine, tmp_path):
    config = tiny.config(engine=engine, norm="gn", validation=20, epochs=1, batch_size=BATCH)
    done = tiny.train(config, out=tmp_path / "run", callbacks=[EvaluatesOthers()])
    for split in ("val", "test"):
        assert done.history[0][f"{split}_loss"] == pytest.approx(math.log(10))
        assert done.metrics[f"{split}_loss"] != pytest.approx(math.log(10))
