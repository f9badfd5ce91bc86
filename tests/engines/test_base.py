"""The laws that every engine keeps, on whichever backend this process runs."""

import math

import hypothesis
import keras
import numpy as np
import pytest
from helpers import tiny
from helpers.gradients import parameter_gradients
from hypothesis import example, given
from hypothesis import strategies as st
from keras import ops

from kerasnorm.engines import choice
from kerasnorm.engines.keras_engine import KerasEngine
from kerasnorm.engines.optimizers import RateTable, make_optimizer
from kerasnorm.engines.schedule import learning_rates
from kerasnorm.errors import ConfigError, DivergedError
from kerasnorm.process_group import ProcessGroup
from kerasnorm.training.fit import make_batches, make_engine

pytestmark = pytest.mark.backend("any")

# On TensorFlow, where a test takes seconds to trace, equality of the two is enough.
KINDS = ["native", "keras"] if keras.backend.backend() == "torch" else ["native"]


@pytest.fixture(params=KINDS)
def engine(request):
    """Makes an engine of a tiny config with some fields changed."""
    return lambda **overrides: make_engine(
        tiny.config(engine=request.param, **overrides), tiny.dataset()
    )


def weights(engine):
    return [ops.convert_to_numpy(variable.value) for variable in engine.model.trainable_variables]


@pytest.mark.backend("any", long_on="tensorflow")
def test_every_step_is_told_and_the_last_batch_is_partial(engine):
    recorder = tiny.Listener()
    engine().train_epoch(0, recorder)
    assert recorder.begun == [0, 1, 2, 3]
    assert recorder.ended == [0, 1, 2, 3]


@pytest.mark.backend("any", long_on="tensorflow")
def test_training_lowers_the_loss(engine, compiled):
    trained = engine(epochs=8, learning_rate=0.02, norm="bn")
    losses = [trained.train_epoch(epoch, tiny.Listener()).loss for epoch in range(8)]
    assert losses[-1] < losses[0] - 0.2


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "muon"])
def test_each_optimizer_follows_the_rate_table(optimizer):
    decay = {"adam": 0.0}.get(optimizer, 0.05)
    config = tiny.config(optimizer=optimizer, weight_decay=decay)
    rates = learning_rates(config.train, 40)
    made = make_optimizer(config.train, rates)
    for step in (0, 7, 39):
        made.iterations.assign(step)
        assert np.isclose(float(ops.convert_to_numpy(made.learning_rate)), rates[step], rtol=1e-6)


def rate_by_hand(schedule, warmup, peak, step, steps):
    """The learning rate of a step, as the docstring of `learning_rates` says."""

    def half_cosine(start, end, share):
        return end + (start - end) * (1 + math.cos(math.pi * share)) / 2

    if schedule == "constant":
        return peak
    if schedule == "onecycle":
        turn = warmup * steps - 1
        if step <= turn:
            return half_cosine(peak / 25, peak, step / turn if turn else 1)
        return half_cosine(peak, peak / 25e4, (step - turn) / (steps - 1 - turn))
    done = (step + 0.5) / steps
    if done < warmup:
        return peak * done / warmup
    left = (1 - done) / (1 - warmup)
    return peak * left if schedule == "triangular" else half_cosine(peak, 0, 1 - left)


@pytest.mark.long
@hypothesis.settings(max_examples=10)
@given(
    *(st.sampled_from(KINDS), st.sampled_from(["triangular", "onecycle", "cosine", "constant"])),
    *(st.floats(0, 1), st.integers(1, 20), st.integers(1, 3)),
)
@example("native", "triangular", 0.25, 20, 1)
@example("native", "onecycle", 0.0, 20, 1)
@example("native", "onecycle", 1.0, 7, 2)
@example("native", "cosine", 1.0, 7, 2)
def test_every_step_has_the_rate_of_the_formula(kind, schedule, warmup, batch, epochs):
    """The images are black for the network, so that SGD moves a bias by its rate alone.

    Its gradient is softmax(bias) minus the shares of the classes in the batch.
    """
    pixels = keras.Input((32, 32, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(0.0)(pixels))
    dense = keras.layers.Dense(10)
    model = keras.Model(pixels, dense(x))
    config = tiny.config(
        engine=kind, schedule=schedule, warmup=warmup, batch_size=batch, epochs=epochs,
        optimizer="sgd", momentum=0.0, weight_decay=0.0, learning_rate=0.5,
    )  # fmt: skip
    one = choice.make(model, make_batches(config, tiny.dataset(20)), config.train)
    bias, per_epoch = np.zeros(10), math.ceil(20 / batch)
    for epoch in range(epochs):
        one.train_epoch(epoch, tiny.Listener())
        for step in range(per_epoch):
            number, steps = epoch * per_epoch + step, epochs * per_epoch
            rate = rate_by_hand(schedule, warmup, 0.5, number, steps)
            _, labels = one.batches.batch(epoch, step)
            shares = np.bincount(labels, minlength=10) / len(labels)
            bias -= rate * (np.exp(bias) / np.exp(bias).sum() - shares)
        assert np.allclose(ops.convert_to_numpy(dense.bias), bias, rtol=1e-4, atol=1e-6)


def test_muon_moves_a_kernel_by_an_orthogonal_matrix_and_a_vector_as_adamw():
    config = tiny.config(
        optimizer="muon", weight_decay=0.0, schedule="constant", learning_rate=0.01, momentum=0.9
    )
    rng = np.random.default_rng(0)
    kernel = keras.Variable(rng.standard_normal((3, 3, 4, 8)), name="kernel")
    gamma = keras.Variable(np.ones(8), name="gamma")
    optimizer = make_optimizer(config.train, learning_rates(config.train, 10))
    optimizer.build([kernel, gamma])
    gradients = rng.standard_normal((36, 8)) @ np.diag(np.geomspace(0.01, 100, 8)), np.full(8, 3.0)
    before = ops.convert_to_numpy(kernel).reshape(36, 8)
    tensors = [ops.convert_to_tensor(g.reshape(v.shape), "float32")
               for g, v in zip(gradients, (kernel, gamma), strict=True)]  # fmt: skip
    optimizer.apply(tensors, [kernel, gamma])
    moved = (before - ops.convert_to_numpy(kernel).reshape(36, 8)) / (0.01 * 0.2 * 6)
    values = np.linalg.svd(moved)[1]
    # Its five iterations lift what is larger than a thousandth of the largest.
    assert np.all(values[:5] > 0.6)
    assert values.max() < 1.3
    assert np.sum(moved * gradients[0]) > 0
    assert np.allclose(ops.convert_to_numpy(gamma), 1 - 0.01, atol=1e-6)


def test_the_rate_table_holds_its_last_rate_and_round_trips():
    table = RateTable([0.1, 0.2])
    assert np.isclose(float(ops.convert_to_numpy(table(5))), 0.2)
    assert RateTable.from_config(table.get_config()).get_config() == table.get_config()


def test_one_sgd_step_is_the_formula(engine):
    # w - rate * (gradient + decay * w): Keras decays first, by rate * decay * w.
    one = engine(
        optimizer="sgd", momentum=0.0, schedule="constant", learning_rate=0.1, weight_decay=0.01,
        epochs=1, batch_size=60, norm="none", residual=False, alternating_flip=False, translate=0,
    )  # fmt: skip
    before = weights(one)
    images, labels = one.batches.batch(0, 0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    gradients = parameter_gradients(
        lambda: loss(labels, one.model(images, training=True)), one.model.trainable_variables
    )
    one.train_epoch(0, tiny.Listener())
    for start, gradient, end in zip(before, gradients, weights(one), strict=True):
        assert np.allclose(end, start * (1 - 0.1 * 0.01) - 0.1 * gradient, atol=1e-5)


def test_decay_leaves_gamma_and_beta_alone(engine):
    one = engine(
        optimizer="sgd", momentum=0.0, schedule="constant", learning_rate=1e-9,
        weight_decay=1e8, epochs=1, batch_size=60, norm="gn",
    )  # fmt: skip
    before = {v.path: ops.convert_to_numpy(v.value) for v in one.model.trainable_variables}
    one.train_epoch(0, tiny.Listener())
    for variable in one.model.trainable_variables:
        change = np.abs(ops.convert_to_numpy(variable.value) - before[variable.path]).max()
        is_kernel = variable.path.endswith("kernel")
        assert (change > 1e-3) == is_kernel, variable.path


@keras.saving.register_keras_serializable(package="tests")
class Scale(keras.layers.Layer):
    """A norm's scale and shift with an axis of size 1 for every axis but the last."""

    def build(self, shape):
        for name in ("gamma", "beta"):
            weight = self.add_weight(shape=(1, 1, 1, shape[-1]), initializer="ones", name=name)
            setattr(self, name, weight)

    def call(self, x):
        return self.gamma * x + self.beta


def every_kind_of_weight(engine, **fields):
    """An engine of a network with a weight of every rank that layers for images have."""
    layers = keras.layers
    keras.utils.set_random_seed(0)
    pixels = keras.Input((32, 32, 3))
    x = layers.Conv2D(4, 3, strides=4)(layers.Rescaling(1 / 255)(pixels))
    x = Scale()(layers.DepthwiseConv2D(3)(x))
    x = layers.LayerNormalization(axis=(1, 2, 3))(layers.SeparableConv2D(4, 3)(x))
    model = keras.Model(pixels, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))
    config = tiny.config(
        engine=engine, schedule="constant", epochs=1, batch_size=60, alternating_flip=False,
        translate=0, **fields,
    )  # fmt: skip
    return choice.make(model, make_batches(config, tiny.dataset()), config.train)


@pytest.mark.backend("any", long_on="tensorflow")
@pytest.mark.parametrize("kind", ["native", "keras"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_all_kernels_and_no_other_weights_decay(optimizer, kind):
    one = every_kind_of_weight(kind, optimizer=optimizer, learning_rate=1e-9, weight_decay=2e8)
    before = weights(one)
    one.train_epoch(0, tiny.Listener())
    for variable, start, end in zip(
        one.model.trainable_variables, before, weights(one), strict=True
    ):
        share = 1 - 1e-9 * 2e8 if variable.path.endswith("kernel") else 1.0
        np.testing.assert_allclose(end, share * start, atol=1e-6, err_msg=variable.path)


@pytest.mark.parametrize("kind", ["native", "keras"])
@pytest.mark.backend("any", long_on="tensorflow")
def test_muon_moves_every_weight_but_the_kernels_of_convolutions_as_adamw_does(kind):
    fields = {"learning_rate": 0.01, "weight_decay": 0.0}
    ends = []
    for optimizer in ("muon", "adamw"):
        one = every_kind_of_weight(kind, optimizer=optimizer, **fields)
        one.train_epoch(0, tiny.Listener())
        ends.append(weights(one))
    for variable, *pair in zip(one.model.trainable_variables, *ends, strict=True):
        is_moved = variable.name.endswith("kernel") and len(variable.shape) == 4
        assert np.allclose(*pair, atol=1e-6) != is_moved, variable.path


@pytest.mark.backend("any", long_on="tensorflow")
@pytest.mark.parametrize("dropout_kind", ["element", "spatial"])
def test_a_restored_engine_goes_on_to_the_same_bytes(dropout_kind, engine):
    options = {"recipe": "era8", "norm": "bn", "dropout": 0.2, "dropout_kind": dropout_kind}
    options["batch_size"] = 40  # one whole batch and a partial one
    straight = engine(**options)
    straight.train_epoch(0, tiny.Listener())
    state = straight.state()
    straight.train_epoch(1, tiny.Listener())
    resumed = engine(**options)
    resumed.load_state(state)
    resumed.train_epoch(1, tiny.Listener())
    for name, array in straight.state().items():
        assert array.tobytes() == resumed.state()[name].tobytes(), name


def test_an_absurd_rate_ends_in_a_clear_error(engine):
    hot = engine(
        optimizer="sgd", learning_rate=1e30, schedule="constant", weight_decay=0.0, norm="none"
    )
    with pytest.raises(DivergedError, match="epoch 1, step"):
        hot.train_epoch(0, tiny.Listener())


@pytest.mark.backend("any", long_on="tensorflow")
def test_reported_loss_leaves_regularization_out(engine):
    plain = engine(l2=0.0, learning_rate=1e-12).train_epoch(0, tiny.Listener())
    heavy = engine(l2=10.0, learning_rate=1e-12).train_epoch(0, tiny.Listener())
    assert np.isclose(plain.loss, heavy.loss, rtol=1e-4)


def test_prediction_gives_logits_of_all_images(engine):
    made = engine()
    images = tiny.dataset().test.images
    logits = made.predict(images)
    assert logits.shape == (20, 10)
    assert np.allclose(logits, ops.convert_to_numpy(made.model(images)), atol=1e-4)


class Penalized(keras.layers.Layer):
    """Adds a loss of its own."""

    def call(self, x):
        self.add_loss(ops.mean(ops.square(x)))
        return x


@pytest.mark.backend("any", long_on="tensorflow")
@pytest.mark.parametrize("form", ["option", "layer", "add_loss", "constraint", "plain"])
def test_a_model_that_the_native_engine_would_train_wrongly_is_trained_by_keras(form, caplog):
    layers, data = keras.layers, tiny.dataset()
    config = tiny.config(engine="native", optimizer="sgd", learning_rate=0.01)
    inputs = keras.Input(data.image_shape)
    x = layers.Rescaling(1 / 255)(inputs)
    option = {
        "option": {"activity_regularizer": "l2"},
        "constraint": {"kernel_constraint": keras.constraints.MaxNorm(0.1)},
    }
    x = layers.Conv2D(4, 3, **option.get(form, {}))(x)
    if form == "layer":
        x = layers.ActivityRegularization(l2=0.1)(x)
    if form == "add_loss":
        x = Penalized()(x)
    model = keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))
    batches = make_batches(config, data)
    engine = choice.make(model, batches, config.train)
    on_tensorflow = keras.backend.backend() == "tensorflow"
    is_native = form == "plain" or (form == "constraint" and on_tensorflow)
    assert (type(engine) is KerasEngine) == (not is_native)
    assert len(caplog.messages) == (not is_native)
    stock = KerasEngine(keras.models.clone_model(model), batches, config.train)
    stock.load_state(engine.state())
    tiny.assert_same_epoch(stock, engine)
    for name, array in stock.state().items():
        assert np.allclose(array, engine.state()[name], rtol=1e-3, atol=1e-4), name
    if not is_native:
        group = ProcessGroup()
        group.size = 2
        with pytest.raises(ConfigError, match="cannot train this model"):
            choice.make(model, batches, config.train, group)


class Failing(keras.layers.Layer):
    """A layer that cannot be computed once it is in a model."""

    def __init__(self, error):
        super().__init__()
        self.error = error
        self.is_in_model = False

    def call(self, x):
        if self.is_in_model:
            raise self.error
        return x


def failing_model(shape, layer):
    parts = [layer, keras.layers.Flatten(), keras.layers.Dense(10)]
    model = keras.Sequential([keras.Input(shape), *parts])
    layer.is_in_model = True
    return model


def channels_first(layer):
    return keras.Sequential([keras.layers.Permute((3, 1, 2)), layer])


CANNOT = {
    **{
        f"{kind.__name__}": lambda kind=kind: Failing(kind("no such shape"))
        for kind in (ValueError, TypeError, RuntimeError, KeyError, ZeroDivisionError)
    },
    **{
        f"{name} of channels first": lambda name=name: channels_first(
            getattr(keras.layers, name)(3, 3, data_format="channels_first")
        )
        for name in ("Conv2D", "Conv2DTranspose")
    },
}


@pytest.mark.parametrize("engine", ["native", "keras"])
@pytest.mark.parametrize("kind", CANNOT)
def test_a_layer_that_cannot_be_computed_is_an_error_of_one_line(kind, engine):
    if "channels first" in kind and keras.backend.backend() != "tensorflow":
        pytest.skip("torch computes it")
    config, data = tiny.config(engine=engine), tiny.dataset()
    model = failing_model(data.image_shape, CANNOT[kind]())
    advice = "--backend torch" if "channels first" in kind else "no such shape"
    for compute in (
        lambda: choice.make(model, make_batches(config, data), config.train),
        lambda: choice.predictor(model)(data.test.images),
    ):
        with pytest.raises(ConfigError, match=advice) as caught:
            compute()
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("kind", [TypeError, RuntimeError, KeyError, AssertionError])
@pytest.mark.parametrize("place", ["made", "called"])
def test_a_fault_of_the_native_engine_is_not_that_of_a_layer(kind, place, monkeypatch):
    """Keras computes the layers."""
    backend = keras.backend.backend()
    made = {"torch": "lowering.LoweredModel", "tensorflow": "engine.inference"}[backend]
    name = made if place == "made" else "engine.predict"

    def broken(*_):
        raise kind("a mistake in this package")

    monkeypatch.setattr(f"kerasnorm.engines.{backend}.{name}", broken)
    data = tiny.dataset()
    model = keras.Sequential([keras.Input(data.image_shape), keras.layers.Flatten()])
    with pytest.raises(kind, match="a mistake in this package"):
        choice.predictor(model)(data.test.images)


def test_memory_that_runs_out_in_a_layer_stays_that():
    config, data = tiny.config(), tiny.dataset()
    model = failing_model(data.image_shape, Failing(MemoryError()))
    with pytest.raises(MemoryError):
        choice.make(model, make_batches(config, data), config.train)


@pytest.mark.backend("any", long_on="tensorflow")
@pytest.mark.parametrize("form", ["option", "layer", "add_loss"])
def test_a_layer_in_half_precision_adds_its_loss(form):
    layers, data = keras.layers, tiny.dataset()
    inputs = keras.Input(data.image_shape)
    half = {"dtype": "mixed_bfloat16"}
    option = {"activity_regularizer": keras.regularizers.L2(0.5)} if form == "option" else {}
    x = layers.Rescaling(1 / 255, dtype="float32")(inputs)
    x = layers.Activation("linear", **half, **option)(x)
    if form == "layer":
        x = layers.ActivityRegularization(l2=0.5, **half)(x)
    if form == "add_loss":
        x = Penalized(**half)(x)
    x = layers.GlobalAveragePooling2D(**half)(x)
    model = keras.Model(inputs, layers.Dense(10, dtype="float32")(x))
    config = tiny.config(precision="mixed_bfloat16", batch_size=60, epochs=1)
    one, listener = choice.make(model, make_batches(config, data), config.train), tiny.Listener()
    scores = one.train_epoch(0, listener)
    squares = np.square(data.train.images / 255.0)
    added = squares.mean() if form == "add_loss" else 0.5 * squares.sum() / len(squares)
    assert np.isclose(listener.losses[0] - scores.loss, added, rtol=0.02)


@keras.saving.register_keras_serializable(package="tests")
class Pull(keras.regularizers.L1L2):
    """One of L1L2's own kind with another formula: towards 1, a sum for each filter."""

    def __call__(self, x):
        return ops.sum(ops.square(x - 1.0), axis=(0, 1, 2))


@keras.saving.register_keras_serializable(package="tests")
class ByName(keras.regularizers.Regularizer):
    """Reads the name of the variable that it is called on."""

    def __call__(self, x):
        return (3.0 if x.path.endswith("kernel") else 0.0) * ops.sum(ops.square(x))


PENALTIES = {
    "L1": (keras.regularizers.L1(0.1), lambda w: 0.1 * np.abs(w).sum()),
    "L1L2": (keras.regularizers.L1L2(0.1, 0.2), lambda w: (0.1 * abs(w) + 0.2 * w**2).sum()),
    "of a user, per filter": (Pull(), lambda w: np.square(w - 1).sum()),
    "of a user, by name": (ByName(), lambda w: 3 * np.square(w).sum()),
    "orthogonal": (  # rows of a 1x1 kernel with one input channel are all parallel
        keras.regularizers.OrthogonalRegularizer(0.5),
        lambda w: 0.5 * np.triu(np.abs(unit(w) @ unit(w).T), 1).sum() / (len(w) * (len(w) - 1) / 2),
    ),
}


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("kind", ["native", "keras"])
@pytest.mark.parametrize("name", PENALTIES)
def test_every_regularizer_adds_the_sum_of_its_formula_to_the_loss(name, kind):
    layers, (regularizer, formula) = keras.layers, PENALTIES[name]
    pixels = keras.Input((32, 32, 3))
    x = layers.GlobalAveragePooling2D()(layers.Rescaling(1 / 255)(pixels))
    dense = layers.Dense(10, kernel_regularizer=regularizer)
    if name == "of a user, per filter":
        x, dense = x[:, None, None], layers.Conv2D(10, 1, kernel_regularizer=regularizer)
    model = keras.Model(pixels, layers.Reshape((10,))(dense(x)))
    config = tiny.config(
        engine=kind, optimizer="sgd", momentum=0.0, weight_decay=0.0, schedule="constant",
        learning_rate=0.01, batch_size=60, epochs=1,
    )  # fmt: skip
    one = choice.make(model, make_batches(config, tiny.dataset()), config.train)
    before, listener = ops.convert_to_numpy(dense.kernel).astype(np.float64), tiny.Listener()
    scores = one.train_epoch(0, listener)
    assert np.isclose(listener.losses[0] - scores.loss, formula(before), rtol=1e-4)


def with_unused_weights(kind, **fields):
    """An engine of a network with a kernel on which the loss does not depend."""
    layers = keras.layers
    keras.utils.set_random_seed(0)
    pixels = keras.Input((32, 32, 3))
    x = layers.Conv2D(4, 3, strides=4)(layers.Rescaling(1 / 255)(pixels))
    unused = ops.stop_gradient(layers.BatchNormalization()(layers.Conv2D(4, 1, name="unused")(x)))
    x = layers.GlobalAveragePooling2D()(x + unused)
    model = keras.Model(pixels, layers.Dense(10)(x))
    config = tiny.config(engine=kind, schedule="constant", epochs=1, **fields)
    return choice.make(model, make_batches(config, tiny.dataset()), config.train)


@pytest.mark.backend("any", long_on="tensorflow")
@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_weights_without_a_gradient_stay_and_all_others_move_as_in_keras(optimizer):
    fields = {"optimizer": optimizer, "learning_rate": 0.01, "weight_decay": 0.5}
    native, stock = (with_unused_weights(kind, **fields) for kind in ("native", "keras"))
    assert type(native) is not type(stock)
    stock.load_state(native.state())
    before = weights(native)
    tiny.assert_same_epoch(stock, native)
    for variable, start, end in zip(
        native.model.trainable_variables, before, weights(native), strict=True
    ):
        is_unused = variable.path.startswith(("unused", "batch_normalization"))
        assert np.array_equal(start, end) == is_unused, variable.path
    for name, array in stock.state().items():
        assert np.allclose(array, native.state()[name], rtol=1e-3, atol=1e-4), name


@pytest.mark.backend("any", slow_on="tensorflow")
@pytest.mark.parametrize(
    ("kind", "optimizer"),
    [("native", "adamw"), ("native", "sgd"), ("native", "muon"), ("keras", "adamw")],
)
def test_layers_that_are_frozen_between_epochs_stay_and_others_move(kind, optimizer):
    config = tiny.config(engine=kind, optimizer=optimizer, norm="bn", dropout=0.1)
    one = make_engine(config, tiny.dataset())
    one.train_epoch(0, tiny.Listener())
    for layer in one.model.layers:
        layer.trainable = "norm" not in layer.name
    fused, switches = one.fused_kernels, one.switches()
    before = {v.path: ops.convert_to_numpy(v.value).copy() for v in one.model.variables}
    scores = one.train_epoch(1, tiny.Listener())
    for variable in one.model.weights:
        is_frozen = "norm" in variable.path
        is_same = np.array_equal(ops.convert_to_numpy(variable.value), before[variable.path])
        assert is_same == is_frozen, variable.path
    assert one.fused_kernels == fused
    # The same from the state: the first epoch's weights, statistics and switches.
    other = make_engine(config, tiny.dataset())
    other.train_epoch(0, tiny.Listener())
    other.load_switches(switches)
    assert other.train_epoch(1, tiny.Listener()) == scores


@pytest.mark.backend("any", long_on="tensorflow")
def test_a_rate_of_dropout_that_changes_between_epochs_counts():
    one = make_engine(tiny.config(dropout=0.0001, norm="none", learning_rate=1e-9), tiny.dataset())
    low = one.train_epoch(0, tiny.Listener()).loss
    for layer in one.model.layers:
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.9
    assert one.train_epoch(1, tiny.Listener()).loss > 1.5 * low


@pytest.mark.parametrize("frozen", ["first", "all"])
def test_weights_that_the_optimizer_does_not_know_are_not_trained_in_silence(frozen):
    layers = keras.layers
    pixels = keras.Input((32, 32, 3))
    conv = layers.Conv2D(4, 3, strides=4, trainable=frozen == "all")
    x = layers.GlobalAveragePooling2D()(conv(layers.Rescaling(1 / 255)(pixels)))
    model = keras.Model(pixels, layers.Dense(10)(x))
    config = tiny.config(batch_size=60)
    one = choice.make(model, make_batches(config, tiny.dataset()), config.train)
    for layer in model.layers:
        layer.trainable = frozen == "first"
    with pytest.raises(ConfigError, match="callbacks: expected"):
        one.train_epoch(0, tiny.Listener())


@pytest.mark.backend("any", long_on="tensorflow")
@pytest.mark.parametrize("kind", ["native", "keras"])
def test_callbacks_know_whether_more_of_a_metric_is_better(kind):
    one = make_engine(tiny.config(engine=kind), tiny.dataset())
    for name, is_better in (("loss", np.less), ("accuracy", np.greater), ("entropy", np.less)):
        for prefix in ("", "val_"):
            for make in (
                keras.callbacks.EarlyStopping,
                lambda monitor: keras.callbacks.ModelCheckpoint(
                    "x.keras", monitor, save_best_only=True
                ),
            ):
                callback = make(prefix + name)
                callback.set_model(one.model)
                callback._set_monitor_op()
                better = [callback._is_improvement(*p) for p in ((0.5, 0.6), (0.6, 0.5))]
                assert better == [is_better(0.5, 0.6), is_better(0.6, 0.5)], prefix + name
    assert all(not np.any(ops.convert_to_numpy(v)) for v in one.model.metrics_variables)


@pytest.mark.backend("any")
@pytest.mark.parametrize("engine", ["native", "keras"])
def test_a_layer_that_needs_several_images_is_trained(engine):
    class Halves(keras.layers.Layer):
        """Works on two halves of a batch, as ghost batch norms do."""

        def compute_output_shape(self, shape):
            return shape

        def call(self, x):
            halves = keras.ops.reshape(x, (2, -1, *x.shape[1:]))
            return keras.ops.reshape(halves - keras.ops.mean(halves, 1, keepdims=True), (-1, 3072))

    config, data = tiny.config(engine=engine, batch_size=20, epochs=1), tiny.dataset()
    parts = [keras.layers.Flatten(), Halves(), keras.layers.Dense(10)]
    model = keras.Sequential([keras.Input(data.image_shape), *parts])
    choice.make(model, make_batches(config, data), config.train)
