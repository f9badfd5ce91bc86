"""The native torch engine against that of Keras, against float64 and against its own laws."""

import keras
import numpy as np
import pytest
from helpers import tiny
from helpers.pairs import pairs
from keras import layers

torch = pytest.importorskip("torch")
if keras.backend.backend() != "torch":
    pytest.skip("needs the torch backend", allow_module_level=True)

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

from kerasnorm.data.augment import Augmentation  # noqa: E402
from kerasnorm.data.batches import Batches  # noqa: E402
from kerasnorm.engines.base import dropped_positions  # noqa: E402
from kerasnorm.engines.keras_engine import KerasEngine  # noqa: E402
from kerasnorm.engines.torch.engine import TorchEngine, predict  # noqa: E402
from kerasnorm.engines.torch.layers import Mode  # noqa: E402
from kerasnorm.engines.torch.lowering import LoweredModel  # noqa: E402
from kerasnorm.network import build_model  # noqa: E402

NORMS = ("bn", "gn", "ln", "lnc", "in", "rms", "none")
TRAINING = Mode(training=True)


def in_float64(model):
    def layer64(layer):
        if not isinstance(layer, layers.Layer):
            return layer
        return type(layer).from_config(layer.get_config() | {"dtype": "float64"})

    copy = keras.models.clone_model(model, clone_function=layer64)
    copy.set_weights(model.get_weights())
    return copy


def shaken(model, seed=1):
    """The model with its vectors moved a little, so that no gamma is 1 and no beta 0."""
    rng = np.random.default_rng(seed)
    weights = model.get_weights()
    shake = [w + 0.1 * rng.standard_normal(w.shape) * (w.ndim != 4) for w in weights]
    model.set_weights(shake)
    return model


def network(norm, recipe, **options):
    channels = options.get("input_shape", (32, 32, 3))[-1]
    # Keras rescales with float32 numbers; by these, 1/64 and -2, it does so exactly.
    exact = {"mean": [128 / 255] * channels, "std": [64 / 255] * channels}
    given = {"widths": tiny.WIDTHS, "groups": 2, "dropout": 0.0, "weight_standardization": False}
    given |= exact | options
    return shaken(build_model(norm, recipe, **given))


def images(count, shape=(32, 32, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


def loss_and_gradients(forward, model, pixels, labels):
    parameters = [variable.value for variable in model.trainable_variables]
    logits = forward(torch.from_numpy(pixels))
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))
    gradients = torch.autograd.grad(loss, parameters)
    return logits.detach(), loss.detach(), [g.numpy() for g in gradients]


def assert_same_pass(model, pixels, tolerance):
    labels = np.random.default_rng(3).integers(0, model.output_shape[-1], len(pixels))
    start = model.get_weights()
    expected = loss_and_gradients(lambda x: model(x, training=True), model, pixels, labels)
    moved = model.get_weights()
    model.set_weights(start)
    lowered = LoweredModel(model)
    received = loss_and_gradients(lambda x: lowered(x, TRAINING), model, pixels, labels)
    for a, b in zip(model.get_weights(), moved, strict=True):  # the moving statistics
        assert np.allclose(a, b, rtol=tolerance, atol=tolerance)
    assert torch.allclose(received[0], expected[0], rtol=tolerance, atol=tolerance)
    assert torch.allclose(received[1], expected[1], rtol=tolerance)
    scale = max(np.abs(gradient).max() for gradient in expected[2])
    for variable, a, b in zip(model.trainable_variables, received[2], expected[2], strict=True):
        assert np.abs(a - b).max() <= tolerance * scale, variable.path


@pytest.mark.parametrize(("norm", "recipe"), pairs(NORMS, ["era8", "best"]))
def test_logits_loss_and_gradients_equal_keras(norm, recipe):
    model = network(norm, recipe)
    assert not LoweredModel(model).foreign
    pixels, labels, exact = images(7), np.arange(7), in_float64(model)
    # Keras computes lnc and rms in float32 whatever their type.
    assert_same_pass(exact, pixels, 1e-3 if norm in ("lnc", "rms") else 1e-5)
    # In float32, 1e-4 or as near to float64 as Keras is.
    lowered = LoweredModel(model)
    truth = loss_and_gradients(lambda x: exact(x, training=True), exact, pixels, labels)
    stock = loss_and_gradients(lambda x: model(x, training=True), model, pixels, labels)
    ours = loss_and_gradients(lambda x: lowered(x, TRAINING), model, pixels, labels)
    assert torch.allclose(ours[0], stock[0], rtol=1e-4, atol=1e-4)
    assert torch.allclose(ours[1], stock[1], rtol=1e-4)
    errors = [
        max(np.abs(a - b).max() for a, b in zip(found[2], truth[2], strict=True))
        for found in (ours, stock)
    ]
    scale = max(np.abs(gradient).max() for gradient in truth[2])
    assert errors[0] <= max(1e-4 * scale, 2 * errors[1])


OPTIONS = [
    {"ln_affine": "element"},
    {"weight_standardization": True},
    {"activation": "silu"},
    {"l1": 1e-3, "l2": 1e-3},
    {"order": "conv-act-norm", "residual": True},
    {"input_shape": (9, 6, 1)},
    {"input_shape": (8, 4, 5)},
]


@pytest.mark.parametrize(("norm", "options"), pairs(["bn", "gn", "ln"], OPTIONS), ids=str)
def test_every_flag_and_shape_equals_keras(norm, options):
    model = network(norm, "best", **options)
    pixels = images(8, options.get("input_shape", (32, 32, 3)))
    in_float32 = "weight_standardization" in options or "ln_affine" in options
    assert_same_pass(in_float64(model), pixels, 1e-3 if in_float32 else 1e-5)


@pytest.mark.parametrize("count", [1, 2, 13])
def test_batches_of_any_size_equal_keras(count):
    assert_same_pass(in_float64(network("bn", "era8")), images(count), 1e-5)


@pytest.fixture
def float64():
    """Keras computes losses in its default type."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


def engines(norm, recipe, **overrides):
    """A Keras engine and a native one in the same state, in float64."""
    # A small rate: ten steps at a large one turn rounding into differences of a percent.
    options = {"dropout": 0.0, "batch_size": 7, "train_size": 64, "learning_rate": 1e-3}
    options |= overrides
    config, data = tiny.config(norm=norm, recipe=recipe, **options), tiny.dataset(64)
    fill = np.full(3, 100.0)
    made = []
    for engine in (KerasEngine, TorchEngine):
        augmentation = Augmentation(config.data, data.image_shape, fill, len(data.train), 0)
        batches = Batches(data.train, config.train.batch_size, 0, augmentation)
        model = in_float64(network(norm, recipe, l2=config.model.l2))
        made.append(engine(model, batches, config.train))
    return made


STEPS = [
    ("era8", {}),
    ("best", {}),
    ("best", {"optimizer": "sgd", "learning_rate": 0.01}),
    ("best", {"optimizer": "sgd", "momentum": 0.0, "schedule": "constant"}),
    ("best", {"optimizer": "adam", "weight_decay": 0.0, "l2": 1e-3}),
    ("best", {"optimizer": "muon", "momentum": 0.95}),
]
OFTEN_TRIED = [STEPS[0], STEPS[2], STEPS[-1]]


# An optimizer sees gradients, whose equality the tests above show for each norm: every norm with
# one optimizer, and every optimizer with one norm.
@pytest.mark.parametrize(
    ("norm", "recipe", "options"),
    [
        *(
            pytest.param("bn", *step, marks=() if step in OFTEN_TRIED else pytest.mark.long)
            for step in STEPS
        ),
        *(
            pytest.param(norm, *step, marks=pytest.mark.slow if step[1] else pytest.mark.long)
            for norm in ("gn", "ln", "none")
            for step in STEPS
        ),
    ],
    ids=str,
)
def test_ten_optimizer_steps_equal_the_keras_engine(norm, recipe, options, float64):
    stock, native = engines(norm, recipe, **options)
    assert stock.batches.steps == 10  # the last of a single image
    tiny.assert_same_epoch(stock, native)
    expected, received = stock.state(), native.state()
    assert expected.keys() == received.keys()
    for name, array in expected.items():
        tolerance = 1e-4 if name.startswith("model/") else 1e-3  # the moments swing more
        error = np.abs(array - received[name]).max()
        assert error <= tolerance * np.abs(array).max() + 1e-9, name


@keras.saving.register_keras_serializable(package="tests")
class Doubled(layers.Layer):
    def call(self, x):
        return 2 * x


def test_layers_that_the_lowering_does_not_know_are_called_as_they_are():
    pixels = keras.Input((12, 12, 3))
    x = layers.Rescaling(1 / 255)(pixels)
    x = layers.Conv2D(8, 3, strides=2, padding="same")(x)  # uneven padding
    x = layers.BatchNormalization()(x)
    x = layers.Activation("relu")(x)
    side = layers.DepthwiseConv2D(3, padding="same")(x)
    y = Doubled()(layers.Add()([x, side]))
    y = layers.Conv2D(8, 2, padding="same", activation="relu")(y)
    y = keras.ops.concatenate([y, x], axis=-1)
    y = layers.LayerNormalization()(layers.Dense(6)(layers.AveragePooling2D(2)(y)))
    y = layers.Dense(5)(layers.Flatten()(y))
    y = layers.BatchNormalization()(layers.Activation("relu")(y))
    model = shaken(keras.Model(pixels, y))
    assert_same_pass(in_float64(model), images(5, (12, 12, 3)), 1e-5)
    assert LoweredModel(model).foreign


def test_a_gradient_that_two_layers_share_is_not_written_into():
    pixels = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same")(pixels)
    x = layers.GroupNormalization(groups=2)(x)
    x = layers.Activation("relu")(x)
    x = layers.Add()([x, x, layers.Conv2D(4, 1)(x)])
    x = layers.Activation("relu")(x)
    model = keras.Model(pixels, layers.GlobalAveragePooling2D()(x))
    assert_same_pass(in_float64(shaken(model)), images(4, (8, 8, 3)), 1e-5)


@pytest.mark.parametrize("recipe", ["era8", "best"])
@pytest.mark.parametrize("kind", ["element", "spatial"])
def test_gradients_through_dropout_are_the_slope_of_the_loss(recipe, kind):
    model = in_float64(network("gn", recipe, dropout=0.3, dropout_kind=kind))
    lowered = LoweredModel(model)
    variables, step, mode = model.trainable_variables, 1e-6, Mode(True, (0, 1, 2))

    def measure():
        return loss_and_gradients(lambda x: lowered(x, mode), model, images(6), np.arange(6))

    gradients, rng = measure()[2], np.random.default_rng(0)
    ways = [rng.standard_normal(g.shape) for g in gradients]
    losses = []
    for move in (step, -2 * step):
        for variable, way in zip(variables, ways, strict=True):
            variable.assign(variable.value + move * torch.from_numpy(way))
        losses.append(float(measure()[1]))
    slope = sum((g * way).sum() for g, way in zip(gradients, ways, strict=True))
    assert np.isclose((losses[0] - losses[1]) / (2 * step), slope, rtol=1e-4)


@pytest.mark.parametrize("rate", [1e-4, 0.01, 0.3, 0.95])
def test_dropout_takes_each_value_with_its_probability(rate):
    count, repeats = 20_000, 50
    rng = np.random.default_rng(0)
    taken = np.zeros(count)
    for _ in range(repeats):
        positions = dropped_positions(rng, count, rate)
        assert np.all(np.diff(positions) > 0)
        taken[positions] += 1
    total = count * repeats
    assert abs(taken.sum() - total * rate) < 5 * np.sqrt(total * rate * (1 - rate))
    if rate >= 0.01:  # no place is favored, and neighbors are independent
        halves = taken[: count // 2].sum() - taken[count // 2 :].sum()
        assert abs(halves) < 5 * np.sqrt(total * rate * (1 - rate))
        both = np.mean((taken[1:] - taken.mean()) * (taken[:-1] - taken.mean()))
        assert abs(both) < 5 * taken.var() / np.sqrt(count)


@pytest.mark.parametrize("recipe", ["era8", "best"])
@pytest.mark.parametrize("kind", ["element", "spatial"])
def test_dropout_keeps_the_mean_and_drops_the_rate(recipe, kind):
    pixels = keras.Input((16, 16, 3))
    order = [layers.BatchNormalization(), layers.Activation("relu")]
    drop = {"element": layers.Dropout, "spatial": layers.SpatialDropout2D}[kind](0.25)
    x = layers.Conv2D(32, 1)(pixels)
    for layer in order if recipe == "best" else order[::-1]:
        x = layer(x)
    lowered = LoweredModel(keras.Model(pixels, drop(x)))
    plain = LoweredModel(keras.Model(pixels, x))
    inputs = torch.from_numpy(images(64, (16, 16, 3)))
    with torch.no_grad():
        before, after = plain(inputs, TRAINING), lowered(inputs, Mode(True, (5, 0, 0)))
        again, other = (
            lowered(inputs, Mode(True, (5, 0, 0))),
            lowered(inputs, Mode(True, (5, 0, 1))),
        )
    kept = after != 0
    assert torch.allclose(after[kept], before[kept] / 0.75, rtol=1e-4, atol=1e-5)
    share = float((before != 0)[~kept].sum() / (before != 0).sum())
    assert abs(share - 0.25) < 0.03
    assert torch.equal(after, again)
    assert not torch.equal(after, other)


@pytest.mark.parametrize(
    ("layer", "axes"),
    [
        (layers.BatchNormalization(epsilon=1e-5), (0, 1, 2)),
        (layers.GroupNormalization(groups=1, epsilon=1e-5), (1, 2, 3)),
        (layers.GroupNormalization(groups=8, epsilon=1e-5), (1, 2)),
        (layers.LayerNormalization(axis=(1, 2, 3), epsilon=1e-5), (1, 2, 3)),
        (layers.LayerNormalization(epsilon=1e-5), (3,)),
    ],
    ids=["bn", "ln", "in", "ln-element", "lnc"],
)
def test_a_mean_of_100_and_an_sd_of_one_hundredth_are_normalized_right(layer, axes):
    inputs = keras.Input((16, 16, 8))
    lowered = LoweredModel(keras.Model(inputs, layer(inputs)))
    rng = np.random.default_rng(0)
    x = (100 + 0.01 * rng.standard_normal((4, 16, 16, 8))).astype(np.float32)
    upstream = rng.standard_normal(x.shape)
    exact = torch.from_numpy(x.astype(np.float64)).requires_grad_(True)
    centered = exact - exact.mean(axes, keepdim=True)
    truth = centered / torch.sqrt(centered.square().mean(axes, keepdim=True) + 1e-5)
    (slope,) = torch.autograd.grad(truth, exact, torch.from_numpy(upstream))
    given = torch.from_numpy(x).requires_grad_(True)
    y = lowered(given, TRAINING)
    (received,) = torch.autograd.grad(y, given, torch.from_numpy(upstream).float())
    assert float((y - truth).detach().abs().max()) < 1e-2 * float(truth.detach().abs().max())
    assert float((received - slope).abs().max()) < 1e-2 * float(slope.abs().max())
    with torch.no_grad():
        assert torch.isfinite(lowered(given, Mode())).all()


@pytest.mark.parametrize("norm", NORMS)
def test_prediction_equals_keras_in_chunks(norm):
    model = network(norm, "best")
    pixels = images(261)  # more than a chunk
    expected = model.predict(pixels, verbose=0)
    assert np.allclose(predict(LoweredModel(model), pixels), expected, rtol=1e-4, atol=1e-4)


def test_mixed_precision_stays_near_float32():
    for norm in NORMS:
        full, mixed = (network(norm, "best", precision=p) for p in ("float32", "mixed_bfloat16"))
        mixed.set_weights(full.get_weights())
        a, b = (predict(LoweredModel(m), images(20)) for m in (full, mixed))
        assert b.dtype == np.float32
        assert np.abs(a - b).max() < 0.1 * np.abs(a).max(), norm


class Operations(TorchDispatchMode):
    """The operations that PyTorch does: name, and the tensors that it takes."""

    def __init__(self):
        super().__init__()
        self.done = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
        result = operation(*args, **(kwargs or {}))
        kinds = {leaf.dtype for leaf in tensors if leaf.is_floating_point()}
        self.done.append((operation.overloadpacket.__name__, kinds, result))
        return result


@pytest.mark.parametrize("norm", ["bn", "gn", "ln"])
def test_activations_stay_in_bfloat16_and_statistics_in_float32(norm):
    model = network(norm, "best", precision="mixed_bfloat16")
    lowered = LoweredModel(model)
    with Operations() as operations:
        lowered(torch.tensor(images(4)), TRAINING).square().sum().backward()
    by_name = {}
    for name, kinds, result in operations.done:
        by_name.setdefault(name, []).append((kinds, result))
    half, full = {torch.bfloat16}, {torch.float32}
    *hidden, logits = [kinds for kinds, _ in by_name["convolution"]]
    assert hidden == [half] * len(hidden)
    assert logits == full
    for name in ("silu", "silu_backward", "max_pool2d_with_indices"):
        assert all(kinds == half for kinds, _ in by_name[name]), name
    statistics = {name for name in by_name if "_norm" in name or name.startswith(("mean", "var"))}
    assert statistics
    for name in statistics:
        assert all(kinds == full for kinds, _ in by_name[name]), name
    kernels = [tuple(layer.kernel.shape) for layer in model.layers if "kernel" in dir(layer)]
    casts = [tuple(result.shape) for _, result in by_name["_to_copy"] if result.dtype in half]
    shapes = {(shape[-1], shape[-2], *shape[:2]) for shape in kernels[:-1]}
    assert sum(shape in shapes for shape in casts) == len(kernels) - 1  # once each
