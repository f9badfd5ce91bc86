"""What a native engine's training pass must do, against the layers' definitions and the config.

Every layer that behaves differently in training is compared with its formula, and every field of
the config that changes what a run computes must change the run's history.
"""

import functools
import json

import keras
import numpy as np
import pytest
from helpers import tiny
from keras import layers, ops

from kerasnorm.config import SETTINGS
from kerasnorm.data import prepare
from kerasnorm.data.augment import DROPOUT_STREAM, generator
from kerasnorm.engines import choice
from kerasnorm.runtime import seed_everything
from kerasnorm.training.fit import make_batches, make_engine

pytestmark = pytest.mark.backend("any")

BACKEND = keras.backend.backend()
RATE = 0.3
KEY = (0, 0, 0)  # (seed, epoch, step)

if BACKEND == "torch":
    import torch

    from kerasnorm.engines.torch.layers import Mode
    from kerasnorm.engines.torch.lowering import LoweredModel

    def training_pass(model, x):
        """The output of the engine's training pass for x (N, H, W, C)."""
        with torch.no_grad():
            return LoweredModel(model)(torch.from_numpy(x), Mode(training=True, key=KEY)).numpy()

    def inference_pass(model, x):
        with torch.no_grad():
            return LoweredModel(model)(torch.from_numpy(x), Mode()).numpy()

elif BACKEND == "tensorflow":
    import tensorflow as tf

    from kerasnorm.engines.tensorflow.engine import inference
    from kerasnorm.engines.tensorflow.lowering import LoweredModel

    def training_pass(model, x, *, is_compiled=False):
        """The output of the engine's training pass for x (N, H, W, C)."""
        lowered = LoweredModel(model, is_compiled=is_compiled)
        drawn, ends = lowered.draw([KEY], len(x))
        return tf.function(lowered, jit_compile=is_compiled)(x, drawn, ends[0]).numpy()

    def inference_pass(model, x):
        return inference(model)(x).numpy()

else:
    pytest.skip("needs a backend with a native engine", allow_module_level=True)


@keras.saving.register_keras_serializable(package="tests")
class Untold(layers.Layer):
    """A layer that drops inside but whose call does not take `training`."""

    def __init__(self, rate=RATE, **options):
        super().__init__(**options)
        self.drop = layers.SpatialDropout2D(rate)

    def call(self, x):
        return self.drop(x)


def nested(layer):
    """A model around a layer whose call inside has recorded `training=False`."""
    inputs = keras.Input((8, 8, 4))
    return keras.Model(inputs, layer(inputs, training=False))


class Recorded:
    """A layer that the author of a graph called with `training=False`."""

    def __init__(self, layer):
        self.layer = layer

    def __call__(self, x):
        return self.layer(x, training=False)


def standardized_convolution():
    return layers.Conv2D(4, 1, kernel_initializer=keras.initializers.HeNormal(seed=5))


# Each by whether it is on: off, it has a rate of 0 or does in training what it does in inference.
DROPOUTS = {
    "Dropout": lambda on: layers.Dropout(RATE * on),
    "Dropout, recorded False": lambda on: Recorded(layers.Dropout(RATE * on)),
}
CHANNEL_DROPOUTS = {
    "SpatialDropout2D": lambda on: layers.SpatialDropout2D(RATE * on),
    "Dropout, noise_shape": lambda on: layers.Dropout(RATE * on, noise_shape=(None, 1, 1, 4)),
    "SpatialDropout2D in a model": lambda on: nested(layers.SpatialDropout2D(RATE * on)),
    "SpatialDropout2D in two models": lambda on: nested(nested(layers.SpatialDropout2D(RATE * on))),
    "SpatialDropout2D in a Sequential": lambda on: keras.Sequential(
        [keras.Input((8, 8, 4)), layers.SpatialDropout2D(RATE * on)]
    ),
    "SpatialDropout2D in a layer": lambda on: Untold(RATE * on),
}
OTHERS = {
    "GaussianNoise": lambda on: layers.GaussianNoise(0.5 * on),
    "GaussianDropout": lambda on: layers.GaussianDropout(RATE * on),
    "AlphaDropout": lambda on: layers.AlphaDropout(RATE * on),
    "BatchNormalization": lambda on: layers.BatchNormalization(trainable=on),
    "SpectralNormalization": lambda on: (
        layers.SpectralNormalization(standardized_convolution(), power_iterations=50)
        if on
        else standardized_convolution()
    ),
    "RandomFlip": lambda on: layers.RandomFlip("horizontal") if on else layers.Identity(),
    "RandomBrightness": lambda on: layers.RandomBrightness(0.25 * on, value_range=(-200, 200)),
}
LAYERS = DROPOUTS | CHANNEL_DROPOUTS | OTHERS


def apply(name):
    """A layer of `LAYERS` on random numbers of 0.5 to 1.5: x, its training pass, its inference."""
    seed_everything(3, 0)
    x = np.random.default_rng(0).uniform(0.5, 1.5, (500, 8, 8, 4)).astype(np.float32)
    inputs = keras.Input((8, 8, 4))
    model = keras.Model(inputs, LAYERS[name](True)(inputs))
    inferred = inference_pass(model, x)
    # A copy: on torch, Keras's RandomBrightness writes into its input.
    return model, x, training_pass(model, x.copy()), inferred


def assert_rate(dropped):
    spread = np.sqrt(RATE * (1 - RATE) / dropped.size)
    assert abs(dropped.mean() - RATE) < 5 * spread


@pytest.mark.parametrize("name", DROPOUTS)
def test_dropout_drops_its_rate_of_the_values_and_scales_the_others(name):
    _, x, y, inferred = apply(name)
    assert np.array_equal(inferred, x)
    assert np.allclose(y[y != 0], x[y != 0] / (1 - RATE), rtol=1e-5)
    assert_rate(y == 0)
    assert ((y == 0).any((1, 2)) & (y != 0).any((1, 2))).all()  # no channel as a whole


@pytest.mark.parametrize("name", CHANNEL_DROPOUTS)
def test_spatial_dropout_drops_its_rate_of_the_channels_and_scales_the_others(name):
    _, x, y, inferred = apply(name)
    assert np.array_equal(inferred, x)
    assert np.allclose(y[y != 0], x[y != 0] / (1 - RATE), rtol=1e-5)
    dropped = (y == 0).all((1, 2))
    assert np.array_equal(dropped, (y == 0).any((1, 2)))
    assert_rate(dropped)


# Operations after which a batch has another number of rows than images.
ROWS = {
    "patches": lambda x: ops.reshape(x, (-1, 4, 4, 4)),
    "twice": lambda x: ops.concatenate([x, x], axis=0),
    "in a model": lambda x: keras.Model(i := keras.Input((8, 8, 4)), ops.concatenate([i, i], 0))(x),
    "pixels": lambda x: ops.reshape(x, (-1, 1, 1, 4)),
    "pairs of images": lambda x: ops.reshape(x, (-1, 16, 8, 4)),
}


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", ["Dropout", "SpatialDropout2D"])
def test_dropout_drops_its_rate_of_all_rows_whatever_a_row_is(name, rows):
    inputs = keras.Input((8, 8, 4))
    outputs = LAYERS[name](True)(layers.Identity()(ROWS[rows](inputs)))
    y = training_pass(keras.Model(inputs, outputs), np.ones((1000, 8, 8, 4), np.float32))
    dropped = y[:, 0, 0] == 0 if name == "SpatialDropout2D" else y == 0
    for part in np.array_split(dropped, 4):
        assert_rate(part)
    assert np.allclose(y[y != 0], 1 / (1 - RATE), rtol=1e-5)


def test_spatial_dropout_drops_the_same_channels_in_every_native_engine():
    _, _, y, _ = apply("SpatialDropout2D")
    drawn = generator(KEY[0], DROPOUT_STREAM, *KEY[1:], 0).random((500, 4))
    assert np.array_equal((y == 0).all((1, 2)), drawn < RATE)


@pytest.mark.backend("tensorflow")  # which has XLA
@pytest.mark.parametrize("name", ["Dropout", "SpatialDropout2D"])
def test_dropout_compiled_by_xla_keeps_its_rate(name, compiled):
    model, x, y, _ = apply(name)
    hashed = training_pass(model, x, is_compiled=True)
    assert np.allclose(hashed[hashed != 0], x[hashed != 0] / (1 - RATE), rtol=1e-5)
    dropped = hashed[:, 0, 0] == 0 if name == "SpatialDropout2D" else hashed == 0
    assert_rate(dropped)
    assert (hashed == 0).sum() == dropped.sum() * (64 if name == "SpatialDropout2D" else 1)
    assert not np.array_equal(hashed, y)  # hashed, not drawn


def test_gaussian_noise_adds_its_standard_deviation():
    _, x, y, inferred = apply("GaussianNoise")
    assert np.array_equal(inferred, x)
    assert abs((y - x).std() - 0.5) < 0.01
    assert abs((y - x).mean()) < 0.01


def test_gaussian_dropout_multiplies_by_its_standard_deviation():
    _, x, y, inferred = apply("GaussianDropout")
    assert np.array_equal(inferred, x)
    assert abs((y / x).std() - np.sqrt(RATE / (1 - RATE))) < 0.01
    assert abs((y / x).mean() - 1) < 0.01


def test_alpha_dropout_sets_its_rate_of_the_values_to_the_floor_of_selu():
    # Klambauer et al., arXiv 1706.02515: floor -lambda * alpha, then an affine map that keeps mean
    # and variance of standardized values.
    _, x, y, inferred = apply("AlphaDropout")
    assert np.array_equal(inferred, x)
    floor = -1.0507009873554805 * 1.6732632423543772
    scale = ((1 - RATE) * (1 + RATE * floor**2)) ** -0.5
    shift = -scale * floor * RATE
    dropped = np.isclose(y, scale * floor + shift, atol=1e-5)
    assert_rate(dropped)
    assert np.allclose(y[~dropped], scale * x[~dropped] + shift, atol=1e-5)


def test_batch_normalization_takes_the_batch_and_moves_its_statistics():
    model, x, y, inferred = apply("BatchNormalization")
    mean, variance = x.mean((0, 1, 2), np.float64), x.var((0, 1, 2), np.float64)
    assert np.allclose(inferred, x / np.sqrt(1 + 1e-3), rtol=1e-5)
    assert np.allclose(y, (x - mean) / np.sqrt(variance + 1e-3), atol=1e-4)
    moved = [ops.convert_to_numpy(v.value) for v in model.non_trainable_variables]
    assert np.allclose(moved[0], 0.01 * mean, rtol=1e-4)
    assert np.allclose(moved[1], 0.99 + 0.01 * variance, rtol=1e-4)


def test_spectral_normalization_divides_the_kernel_by_its_largest_singular_value():
    seed_everything(3, 0)
    _, x, y, inferred = apply("SpectralNormalization")
    layer = standardized_convolution()
    layer.build((None, 8, 8, 4))
    kernel = ops.convert_to_numpy(layer.kernel.value).reshape(4, 4).astype(np.float64)
    assert np.allclose(inferred, x @ kernel, atol=1e-4)
    assert np.allclose(y, x @ kernel / np.linalg.svd(kernel)[1][0], atol=1e-3)


def test_a_random_flip_mirrors_about_half_of_the_images():
    _, x, y, inferred = apply("RandomFlip")
    assert np.array_equal(inferred, x)
    same, mirrored = ((y == z).all((1, 2, 3)) for z in (x, x[:, :, ::-1]))
    assert np.array_equal(same, ~mirrored)
    assert abs(mirrored.mean() - 0.5) < 5 * 0.5 / np.sqrt(len(x))


def test_random_brightness_adds_a_number_to_each_image():
    _, x, y, inferred = apply("RandomBrightness")
    assert np.array_equal(inferred, x)
    added = (y - x).reshape(len(x), -1)
    assert added.std(1).max() < 1e-3
    # Uniform over a quarter of the range of values on either side.
    assert abs(added.mean(1).std() - 100 / np.sqrt(3)) < 6
    assert np.abs(added).max() <= 100 + 1e-3


def engine_of(layer, **overrides):
    """A native engine of a small network with a layer behind its convolution."""
    seed_everything(7, 0)
    config = tiny.config(norm="none", batch_size=8, train_size=16, epochs=1, **overrides)
    pixels = keras.Input((32, 32, 3))
    x = layers.Rescaling(1 / 255)(pixels)
    kernel, top = (keras.initializers.GlorotUniform(seed=seed) for seed in (1, 2))
    x = layer(layers.Conv2D(4, 4, strides=4, kernel_initializer=kernel)(x))
    model = keras.Model(pixels, layers.Dense(10, kernel_initializer=top)(layers.Flatten()(x)))
    return choice.make(model, make_batches(config, tiny.dataset(16, 8)), config.train)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.backend("any", long_on="tensorflow")
def test_a_layer_that_works_in_training_changes_the_history(name):
    on, off = tiny.Listener(), tiny.Listener()
    engine_of(LAYERS[name](True)).train_epoch(0, on)
    engine_of(LAYERS[name](False)).train_epoch(0, off)
    assert np.isfinite([on.losses, off.losses]).all()
    assert all(abs(a - b) > 1e-4 for a, b in zip(on.losses, off.losses, strict=True))


def drawing_layers():
    """A model of every kind of container that holds layers which draw random numbers."""
    inputs = keras.Input((8, 8, 4))
    x = Untold()(inputs)
    for layer in (
        layers.RandomFlip("horizontal"),
        layers.GaussianNoise(0.1),
        nested(layers.GaussianDropout(RATE)),
        keras.Sequential([keras.Input((8, 8, 4)), nested(layers.AlphaDropout(RATE)), Untold()]),
    ):
        x = layer(x)
    return keras.Model(inputs, x)


def seeds(engine):
    return [
        ops.convert_to_numpy(variable.value)
        for variable in engine.model.variables
        if variable.name == "seed_generator_state"
    ]


@pytest.mark.parametrize("kind", ["native", "keras"])
def test_every_layer_that_draws_is_seeded_by_seed_and_epoch(kind):
    def seeded(seed, epoch):
        one.config = tiny.config(seed=seed).train
        one.seed(epoch)
        return seeds(one)

    one = engine_of(drawing_layers(), engine=kind)
    states = [seeded(*key) for key in ((0, 0), (0, 1), (1, 0))]
    assert len(states[0]) == 6
    assert len({state.tobytes() for found in states for state in found}) == 18
    for first, again in zip(states[1], seeded(0, 1), strict=True):
        assert np.array_equal(first, again)


@pytest.mark.parametrize("kind", ["native", "keras"])
def test_layers_that_draw_are_resumed_to_the_same_bytes(kind):
    straight, resumed = (engine_of(drawing_layers(), engine=kind, seed=5) for _ in range(2))
    straight.train_epoch(0, tiny.Listener())
    state = straight.state()
    straight.train_epoch(1, tiny.Listener())
    resumed.load_state(state)
    resumed.train_epoch(1, tiny.Listener())
    for name, array in straight.state().items():
        assert array.tobytes() == resumed.state()[name].tobytes(), name


# A run of one step. Every other field has the value of the recipe `best`.
RUN = {
    "norm": "bn",
    "weight_standardization": False,
    "train_size": 16,
    "test_size": 8,
    "batch_size": 16,
    "epochs": 1,
    "alternating_flip": False,
    "translate": 0,
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "weight_decay": 1.0,
}


def choices(field):
    return SETTINGS[field].field.metadata["choices"]


# (field, other fields that it needs, values whose histories all differ)
CASES = [
    ("norm", {}, choices("norm")),
    ("groups", {"norm": "gn"}, (0, 2, 4)),
    ("group_size", {"norm": "gn", "groups": 0}, (4, 2)),
    ("ln_affine", {"norm": "ln"}, choices("ln_affine")),
    ("weight_standardization", {}, (False, True)),
    ("widths", {}, ((4,) * 10, (4, 4, 4, 4, 4, 4, 4, 4, 4, 8))),
    ("activation", {}, choices("activation")),
    ("order", {}, choices("order")),
    ("norm_transitions", {}, (True, False)),
    ("pooling", {}, choices("pooling")),
    ("residual", {}, (True, False)),
    ("dropout", {"dropout_kind": "element"}, (0.0, 0.3, 0.6)),
    ("dropout", {"dropout_kind": "spatial"}, (0.0, 0.3, 0.6)),
    ("dropout_kind", {"dropout": 0.3}, choices("dropout_kind")),
    ("l1", {}, (0.0, 0.1)),
    ("l2", {}, (0.0, 0.1)),
    ("bn_momentum", {}, (0.9, 0.5)),
    ("initializer", {}, choices("initializer")),
    ("train_size", {"batch_size": 16}, (16, 24)),
    ("test_size", {}, (8, 12)),
    ("validation", {"train_size": 30, "batch_size": 20}, (0, 10)),
    ("preprocessing", {}, choices("preprocessing")),
    ("image_size", {}, ((), (16, 16), (16, 24))),
    ("resize", {"image_size": (16, 32)}, choices("resize")),
    ("flip", {}, (0.0, 1.0)),
    ("alternating_flip", {}, (False, True)),
    ("translate", {}, (0, 4)),
    ("shift_scale_rotate", {}, (0.0, 1.0)),
    ("cutout", {}, (0.0, 1.0)),
    ("cutout_size", {"cutout": 1.0}, (16, 8)),
    ("gray", {}, (0.0, 1.0)),
    ("precision", {}, ("float32", "mixed_bfloat16")),
    ("seed", {}, (0, 1)),
    ("epochs", {}, (1, 2)),
    ("batch_size", {}, (16, 8)),
    ("optimizer", {}, choices("optimizer")),
    ("learning_rate", {}, (0.1, 0.05)),
    *[("momentum", {"optimizer": name, "epochs": 2}, (0.9, 0.5)) for name in ("sgd", "muon")],
    *[("weight_decay", {"optimizer": name}, (1.0, 0.0)) for name in ("sgd", "adamw", "muon")],
    ("schedule", {"epochs": 3}, choices("schedule")),
    *[
        ("warmup", {"schedule": name, "epochs": 3}, (0.25, 0.75))
        for name in choices("schedule")
        if name != "constant"
    ],
]
# Fields that are read before a backend computes: by NumPy for the batches and the table of rates,
# or by Keras for the layers, which both backends' engines then call.
SAME_ON_EACH_BACKEND = {
    *("widths", "activation", "order", "norm_transitions", "pooling", "residual", "groups"),
    *("group_size", "initializer", "train_size", "test_size", "validation", "preprocessing"),
    *("image_size", "resize", "flip", "alternating_flip", "translate", "shift_scale_rotate"),
    *("cutout", "cutout_size", "gray", "epochs", "batch_size", "schedule", "warmup"),
}
# Fields whose values TensorFlow's own tests of norms, layers and optimizer steps compute too.
COMPUTED_ELSEWHERE = {
    *("norm", "ln_affine", "weight_standardization", "bn_momentum", "learning_rate"),
    *("optimizer", "momentum", "weight_decay", "precision", "l1", "l2"),
}
MARKS = {
    **dict.fromkeys(SAME_ON_EACH_BACKEND, pytest.mark.backend("any", slow_on="tensorflow")),
    **dict.fromkeys(COMPUTED_ELSEWHERE, pytest.mark.backend("any", long_on="tensorflow")),
}
# Fields that choose where and how the same numbers are computed, with what tests them instead.
SAME_NUMBERS = {
    "data": "which images are read: tests of the data sources",
    "backend": "which library computes: this module runs on each",
    "engine": "native and keras take the same steps: tests of each native engine",
    "device": "where it is computed",
    "devices": "several devices take the step of one: tests of several processes",
    "network": "other networks refuse fields that this module varies: tests/test_foreign.py",
    "pretrained": "of another network: tests/test_foreign.py",
    "new_head": "of another network: tests/test_foreign.py",
    "bn_sync": "on one device there is one batch: tests of several processes",
    "deterministic": "the same bits on a GPU; a CPU always gives them",
    "fused": "the same sums in one pass: test_fused.py of each backend",
    "log": "what is written beside the run: tests/training/test_loggers.py",
}


@functools.cache
def history(text):
    """Losses of a run's steps and its test loss after each epoch, from its fields as JSON."""
    config = tiny.config(**RUN | json.loads(text))
    dataset = prepare(config.data, config.train.seed)
    engine, listener = make_engine(config, dataset), tiny.Listener()
    entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    tested = []
    for epoch in range(config.train.epochs):
        engine.train_epoch(epoch, listener)
        logits = engine.predict(dataset.test.images)
        tested.append(float(entropy(dataset.test.labels, logits)))
    assert np.isfinite([*listener.losses, *tested]).all()
    return np.array(listener.losses), np.array(tested)


def run_history(field, others, value):
    # Adam takes no decoupled decay.
    needed = {"weight_decay": 0.0} if value == "adam" else {}
    return history(json.dumps(others | {field: value} | needed, sort_keys=True))


def differ(first, second):
    """Whether two histories differ where both have an entry, by more than rounding."""
    return any(
        np.abs(a[: len(b)] - b[: len(a)]).max() > 1e-5 for a, b in zip(first, second, strict=True)
    )


def test_every_field_of_the_config_is_in_the_table():
    changing = {field for field, _, _ in CASES}
    assert changing.isdisjoint(SAME_NUMBERS)
    assert changing | set(SAME_NUMBERS) == set(SETTINGS)


def test_the_same_config_has_the_same_history():
    first = history("{}")
    history.cache_clear()
    assert np.array_equal(np.concatenate(first), np.concatenate(history("{}")))


@pytest.mark.parametrize(
    ("field", "others", "values"),
    [
        pytest.param(
            *(field, others, values),
            id=f"{field}-{others}",
            marks=MARKS.get(field, ()),
        )
        for field, others, values in CASES
    ],
)
def test_every_value_of_a_field_has_a_history_of_its_own(field, others, values):
    found = [run_history(field, others, value) for value in values]
    for index, one in enumerate(found):
        for other in range(index):
            assert differ(one, found[other]), (values[other], values[index])
