"""The native torch engine against Keras's own calls: every option, input type and graph."""

import inspect
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from threading import Barrier
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from keras.src.applications.convnext import LayerScale, StochasticDepth

torch = pytest.importorskip("torch")
if keras.backend.backend() != "torch":
    pytest.skip("needs the torch backend", allow_module_level=True)

from kerasnorm.engines.torch.engine import predict  # noqa: E402
from kerasnorm.engines.torch.layers import (  # noqa: E402
    RULES,
    Mode,
    Site,
    lower_layer,
)
from kerasnorm.engines.torch.lowering import LoweredModel  # noqa: E402
from kerasnorm.inspection.graph import functional_graph, nodes  # noqa: E402
from kerasnorm.layers import StandardizedConv2D  # noqa: E402
from kerasnorm.process_group import shard_of  # noqa: E402

pytestmark = [
    pytest.mark.backend("torch"),
    pytest.mark.filterwarnings("ignore:You passed `rms_scaling=True`"),
]

SHAPE = (6, 6, 4)


def softmax_of_channels(x):
    return keras.ops.softmax(x, axis=-1)


class Scaled:
    """An activation that Keras cannot write into a config."""

    def __call__(self, x):
        return x * keras.ops.mean(x, axis=(1, 2), keepdims=True)


ACTIVATIONS = [
    *sorted(name for name, known in vars(keras.activations).items()
            if inspect.isfunction(known) and name not in ("get", "serialize", "deserialize")),
    softmax_of_channels,
    Scaled(),
    layers.ReLU(max_value=0.5),
]  # fmt: skip
FEW = ["relu", "softmax", Scaled()]
# What every layer takes; each value differs from the default.
COMMON = {
    "name": ["other"],
    "trainable": [False],
    "dtype": ["float64", "mixed_bfloat16", "bfloat16", "mixed_float16"],
    "autocast": [False, {"autocast": False, "dtype": "mixed_bfloat16"}],
    "activity_regularizer": ["l2"],
}
KERNEL = {
    "kernel_initializer": ["ones"],
    "bias_initializer": ["ones"],
    "kernel_regularizer": ["l2"],
    "bias_regularizer": ["l1"],
    "kernel_constraint": ["non_neg"],
    "bias_constraint": ["non_neg"],
}
AFFINE = {
    "epsilon": [0.1],
    "center": [False, {"center": False, "scale": False}],
    "scale": [False],
    "beta_initializer": ["ones"],
    "gamma_initializer": ["zeros"],
    "beta_regularizer": ["l2"],
    "gamma_regularizer": ["l2"],
    "beta_constraint": ["non_neg"],
    "gamma_constraint": ["non_neg"],
}
CONV = KERNEL | {
    "filters": [8],
    "kernel_size": [1, (2, 3), {"kernel_size": (2, 3), "padding": "same"}],
    "strides": [2, {"strides": 2, "padding": "same"}],
    "padding": ["same"],
    "data_format": ["channels_first"],
    "dilation_rate": [2, {"dilation_rate": 2, "padding": "same"}],
    "groups": [2],
    "activation": ACTIVATIONS,
    "use_bias": [False],
}
DEPTHWISE = {
    "activation": FEW,
    "depth_multiplier": [2],
    "depthwise_initializer": ["ones"],
    "depthwise_regularizer": ["l2"],
    "depthwise_constraint": ["non_neg"],
}


def without(options, *names):
    return {name: values for name, values in options.items() if name not in names}


# Of each layer: what it is made with, and values of its options; a dict sets several options.
# Options that this Keras refuses on torch have an empty list.
TABLE: dict[type, tuple[dict[str, Any], dict[str, list[Any]]]] = {
    layers.Rescaling: (
        {"scale": 0.5},
        {
            "scale": [[1.0, -2.0, 3.0, 0.5], np.arange(6.0).reshape(6, 1, 1), np.ones((1, 1, 4))],
            "offset": [1.5, [0.5, 1.0, 2.0, -3.0], np.arange(6.0).reshape(6, 1)],
        },
    ),
    layers.Conv2D: ({"filters": 4, "kernel_size": 3}, CONV),
    StandardizedConv2D: ({"filters": 4, "kernel_size": 3}, CONV),
    layers.Normalization: (
        {"mean": [0.5, -1.0, 2.0, 0.0], "variance": [1.0, 4.0, 0.01, 0.25]},
        {
            "axis": [{"axis": None, "mean": 0.5, "variance": 4.0}, (1, 3)],
            "invert": [True],
        },
    ),
    layers.DepthwiseConv2D: (
        {"kernel_size": 3},
        without(
            CONV,
            "filters",
            "groups",
            "kernel_initializer",
            "kernel_regularizer",
            "kernel_constraint",
        )
        | DEPTHWISE
        | {"strides": [2, {"strides": 2, "padding": "same"}]},
    ),
    layers.SeparableConv2D: (
        {"filters": 4, "kernel_size": 3},
        without(CONV, "groups", "kernel_initializer", "kernel_regularizer", "kernel_constraint")
        | DEPTHWISE
        | {
            "pointwise_initializer": ["ones"],
            "pointwise_regularizer": ["l2"],
            "pointwise_constraint": ["non_neg"],
        },
    ),
    layers.Conv2DTranspose: (
        {"filters": 4, "kernel_size": 3},
        without(CONV, "groups")
        | {
            "activation": FEW,
            "strides": [2, 4, {"strides": 2, "padding": "same"}, {"strides": 4, "padding": "same"}],
            "kernel_size": [1, 2, (2, 5), {"kernel_size": 2, "strides": 3, "padding": "same"}],
            "output_padding": [{"output_padding": 1, "strides": 2}],
        },
    ),
    layers.Dense: (
        {"units": 4},
        KERNEL
        | {
            "units": [1, 8],
            "activation": FEW,
            "use_bias": [False],
            "lora_rank": [2],
            "lora_alpha": [{"lora_rank": 2, "lora_alpha": 3}],
            "quantization_config": [],
        },
    ),
    layers.BatchNormalization: (
        {},
        AFFINE
        | {
            "axis": [1, 2, 3],
            "momentum": [0.5],
            "moving_mean_initializer": ["ones"],
            "moving_variance_initializer": ["ones"],
            "renorm": [True],
            "renorm_clipping": [{"renorm": True, "renorm_clipping": {"rmax": 1.1, "rmin": 0.9}}],
            "renorm_momentum": [0.5, {"renorm": True, "renorm_momentum": 0.5}],
            "synchronized": [],
        },
    ),
    layers.GroupNormalization: ({"groups": 2}, AFFINE | {"groups": [1, 4, -1], "axis": [1, 2, 3]}),
    layers.LayerNormalization: (
        {},
        AFFINE | {"axis": [1, 3, (1, 2, 3), (3, 1, 2), (2, 3), [1, 2]], "rms_scaling": [True]},
    ),
    layers.RMSNormalization: ({}, {"axis": [1, 3, (1, 2, 3)], "epsilon": [0.1]}),
    layers.Activation: ({"activation": "relu"}, {"activation": ACTIVATIONS}),
    layers.ReLU: (
        {},
        {
            "max_value": [0.5, {"max_value": 0.5, "negative_slope": 0.1, "threshold": 0.2}],
            "negative_slope": [0.1],
            "threshold": [0.3],
        },
    ),
    StochasticDepth: ({"drop_path_rate": 0.3}, {"drop_path_rate": [0.0, 0.6]}),
    layers.Dropout: (
        {"rate": 0.3},
        {"rate": [0, 0.6, 1], "seed": [3], "noise_shape": [(None, 1, 1, 4), (5, 6, 6, 4)]},
    ),
    layers.SpatialDropout2D: (
        {"rate": 0.3},
        {"rate": [0, 0.6, 1], "seed": [3], "data_format": ["channels_first"]},
    ),
    layers.MaxPooling2D: (
        {},
        {
            "pool_size": [3, (1, 2)],
            "strides": [1, (2, 1)],
            "padding": ["same", {"padding": "same", "pool_size": 4}],
            "data_format": ["channels_first"],
        },
    ),
    layers.AveragePooling2D: (
        {"pool_size": 2},
        {
            "pool_size": [3, (1, 2)],
            "strides": [1, (2, 1)],
            "padding": [
                "same",
                {"padding": "same", "pool_size": 3, "strides": 1},
                {"padding": "same", "pool_size": 3, "strides": 2},
            ],
            "data_format": ["channels_first"],
        },
    ),
    layers.GlobalAveragePooling2D: ({}, {"data_format": ["channels_first"], "keepdims": [True]}),
    layers.GlobalMaxPooling2D: ({}, {"data_format": ["channels_first"], "keepdims": [True]}),
    layers.ZeroPadding2D: (
        {},
        {"padding": [2, (0, 3), ((1, 0), (2, 3))], "data_format": ["channels_first"]},
    ),
    layers.Cropping2D: (
        {},
        {"cropping": [1, (0, 2), ((1, 0), (2, 3))], "data_format": ["channels_first"]},
    ),
    layers.Add: ({}, {}),
    layers.Multiply: ({}, {}),
    layers.Average: ({}, {}),
    layers.Concatenate: ({}, {"axis": [1, 2, 3]}),
    LayerScale: (
        {"init_values": 0.1, "projection_dim": 4},
        {"init_values": [0.2]},
    ),
    layers.Flatten: ({}, {"data_format": ["channels_first"]}),
    layers.Reshape: (
        {"target_shape": (-1,)},
        {"target_shape": [(1, 1, 144), (-1, 3, 4), (36, 4), (2, 2, 6, 6)]},
    ),
}
RANDOM = layers.Dropout, layers.SpatialDropout2D, StochasticDepth
SEVERAL = layers.Add, layers.Multiply, layers.Average, layers.Concatenate


def rate_of(layer):
    return layer.drop_path_rate if isinstance(layer, StochasticDepth) else layer.rate


NOT_TAKEN = {layers.SpatialDropout2D: {"trainable", "autocast", "activity_regularizer"}}


def options_of(kind):
    """The names of all options of a layer, of those too that its signature does not show."""
    parameters = inspect.signature(kind.__init__).parameters.values()
    named = {p.name for p in parameters if p.kind is not p.VAR_KEYWORD} - {"self"}
    config = kind(**TABLE[kind][0]).get_config().keys()
    return (named | config | COMMON.keys()) - NOT_TAKEN.get(kind, set())


@dataclass
class Case:
    kind: type
    option: str
    value: Any

    def __str__(self):
        text = f"{self.kind.__name__}-{self.option}-{self.value}".replace(" ", "")
        return re.sub("at0x[0-9a-f]+", "", text)  # every process of the suite needs the same names

    def layer(self):
        base = TABLE[self.kind][0]
        return self.kind(**base | self.options())

    def options(self):
        if self.option == "":
            return {}
        whole = isinstance(self.value, dict) and self.option in self.value
        return self.value if whole else {self.option: self.value}


CASES = [
    Case(kind, option, value)
    for kind, (_, options) in TABLE.items()
    for option, values in {"": [None], **COMMON, **options}.items()
    if option not in NOT_TAKEN.get(kind, ())
    for value in values
]


def test_the_table_holds_every_option_of_every_lowered_layer():
    assert TABLE.keys() == RULES.keys()
    for kind, (base, options) in TABLE.items():
        assert (COMMON | options).keys() - NOT_TAKEN.get(kind, set()) == options_of(kind) - (
            set(base) - options.keys()
        ), kind


def shaken(model, seed=1):
    """Gives every variable a value that differs from channel to channel; variances stay above 0."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        if "float" in variable.dtype:
            value = rng.normal(0, 1, variable.shape)
            is_spread = "variance" in variable.path or "stddev" in variable.path
            variable.assign(np.abs(value) + 0.5 if is_spread else value)
    return model


def model_of(layer):
    inputs = keras.Input(SHAPE)
    # Two inputs of unlike size, for a layer that takes several.
    several = [inputs, layers.Rescaling(-2.0, dtype="float32")(inputs)]
    y = layer(several if isinstance(layer, SEVERAL) else inputs)
    return shaken(keras.Model(inputs, y))


def passes(forward, model, x, upstream):
    """Output, input gradient and gradients of a pass, and the variables behind it."""
    start = model.get_weights()
    given = torch.from_numpy(x).requires_grad_(True)
    y = forward(given)
    found = [y.detach().double().numpy()]
    leaves = [given, *(v.value for v in model.trainable_variables)]
    weighted = (y.double() * torch.from_numpy(upstream(y.shape))).sum()
    if weighted.requires_grad:
        slopes = torch.autograd.grad(weighted, leaves, allow_unused=True)
        found += [np.zeros(1) if s is None else s.double().numpy() for s in slopes]
    found += [np.array(w, np.float64) for w in model.get_weights()]
    model.set_weights(start)
    return found


def assert_same(received, expected, tolerance):
    assert len(received) == len(expected)
    for a, b in zip(received, expected, strict=True):
        assert a.shape == b.shape
        assert np.isfinite(b).all()
        assert np.abs(a - b).max() <= tolerance * max(1.0, np.abs(b).max())


def upstream(shape):
    return np.random.default_rng(7).normal(0, 1, tuple(shape))


def tolerance_of(layer):
    is_half = "16" in layer.compute_dtype
    return 0.05 if is_half else 2e-5


PIXELS = np.random.default_rng(0).normal(0.3, 1, (5, *SHAPE)).astype(np.float32)


def is_seldom_tried(case):
    """Whether other types are asked for, which all layers read alike, of a layer but the first."""
    return case.option in ("dtype", "autocast") and case.kind is not next(iter(TABLE))


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(c, marks=pytest.mark.long if is_seldom_tried(c) else (), id=str(c))
        for c in CASES
    ],
)
def test_every_option_gives_what_keras_gives(case):
    layer = case.layer()
    model = model_of(layer)
    lowered = LoweredModel(model)
    for training in (False, True):
        if training and isinstance(layer, RANDOM) and rate_of(layer) > 0:
            continue
        mode = Mode(training=training)
        start = model.get_weights()
        try:
            expected = passes(partial(model, training=training), model, PIXELS, upstream)
        except (RuntimeError, TypeError) as refusal:  # Keras on torch cannot do it
            with pytest.raises(type(refusal)):
                lowered(torch.from_numpy(PIXELS), mode)
            model.set_weights(start)
            continue
        received = passes(partial(lowered, mode=mode), model, PIXELS, upstream)
        assert_same(received, expected, tolerance_of(layer))


@pytest.mark.parametrize("case", [c for c in CASES if c.kind in RANDOM], ids=str)
def test_every_option_of_dropout_is_kept_in_training(case):
    layer = case.layer()
    x = np.ones((200, *SHAPE), np.float32)
    if case.option == "noise_shape" and case.value[0] is not None:
        x = x[: case.value[0]]
    given = torch.from_numpy(x).requires_grad_(True)
    y = LoweredModel(model_of(layer))(given, Mode(training=True, key=(1, 2, 3)))
    slope = torch.zeros(1)
    if y.requires_grad:
        (slope,) = torch.autograd.grad(y.sum(), given)
        assert torch.allclose(slope.double(), y.detach().double(), rtol=0.01)
    kept = y.detach().float().numpy()
    if rate_of(layer) == 1:
        assert not kept.any()
        return
    assert np.allclose(kept[kept != 0], 1 / (1 - rate_of(layer)), rtol=0.01)
    # Axes along which one draw holds.
    axes = (1, 2) if isinstance(layer, layers.SpatialDropout2D) else ()
    axes = (1, 2, 3) if isinstance(layer, StochasticDepth) else axes
    if isinstance(layer, layers.SpatialDropout2D) and layer.data_format == "channels_first":
        axes = (2, 3)
    if case.option == "noise_shape":
        axes = tuple(axis for axis in (1, 2, 3) if case.value[axis] == 1)
    draws = kept.max(axes, keepdims=True) if axes else kept
    assert np.array_equal(kept, np.broadcast_to(draws, kept.shape))
    share, spread = np.mean(draws == 0), np.sqrt(0.25 / draws.size)
    assert abs(share - rate_of(layer)) <= 5 * spread


@pytest.mark.parametrize("processes", [1, 2, 5])
@pytest.mark.parametrize("shape", [*product((None, 1), repeat=4), (5, 1, 1, None)])
def test_one_draw_of_dropout_holds_along_the_axes_of_size_1_in_all_shards(shape, processes):
    lowered = LoweredModel(model_of(layers.Dropout(0.5, noise_shape=shape)))
    images, key = torch.ones(5, *SHAPE), (1, 2, 3)
    shards = [shard_of(5, rank, processes) for rank in range(processes)]
    parts = [lowered(images[shard.slice], Mode(True, key, shard)) for shard in shards]
    found = torch.cat(parts).numpy()
    axes = tuple(axis for axis, size in enumerate(shape) if size == 1)
    assert np.array_equal(found, np.broadcast_to(found.max(axes, keepdims=True), found.shape))
    assert np.array_equal(found, lowered(images, Mode(True, key)).numpy())


@pytest.mark.parametrize("processes", [1, 2, 5])
@pytest.mark.parametrize("rows", [1, 2, 3])  # of an image
@pytest.mark.parametrize(
    "make",
    [
        layers.Dropout(0.5),
        layers.Dropout(0.5, noise_shape=(None, 1, 1, None)),
        layers.SpatialDropout2D(0.5),
        StochasticDepth(0.5),
    ],
)
def test_shards_drop_what_the_whole_batch_does(make, rows, processes):
    inputs = keras.Input((6, 4, 8))
    outputs = make(keras.ops.reshape(inputs, (-1, 6 // rows, 4, 8)))
    lowered = LoweredModel(keras.Model(inputs, outputs))
    images, key = torch.ones(5, 6, 4, 8), (1, 2, 3)
    shards = [shard_of(5, rank, processes) for rank in range(processes)]
    parts = [lowered(images[shard.slice], Mode(True, key, shard)) for shard in shards]
    whole = lowered(images, Mode(True, key))
    assert whole.min() == 0 < whole.max()
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=pytest.mark.long if c.option else (), id=str(c)) for c in CASES],
)
def test_memory_that_a_dropout_may_write_into_is_nobody_elses(case):
    layer = case.layer()
    model = model_of(layer)
    graph = functional_graph(model)
    node = next(n for n in nodes(graph) if n.operation is layer)
    lowered = lower_layer(layer, node.input_tensors, Site(torch.device("cpu")))
    if lowered is None or lowered.scaled is None:
        return
    dtype = getattr(torch, layer.compute_dtype)
    given = torch.from_numpy(PIXELS).to(dtype).permute(0, 3, 1, 2).clone().requires_grad_(True)
    y = lowered.scaled(1.25).call(Mode(training=True), given)
    assert not any(
        shares_memory(y, other) for other in (given, *(v.value for v in layer.variables))
    )
    gradient = torch.ones_like(y)
    (before,) = torch.autograd.grad(y, given, gradient, retain_graph=True)
    y.data.fill_(7)
    (again,) = torch.autograd.grad(y, given, gradient)
    assert torch.equal(again, before)


def shares_memory(a, b):
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def softmax_model(form):
    inputs = keras.Input((5, 7, 3))
    if form == "conv":
        y = layers.Conv2D(4, 3, activation="softmax")(inputs)
    elif form == "depthwise":
        y = layers.DepthwiseConv2D(3, activation="softmax")(inputs)
    else:
        last = {
            "string": lambda: layers.Activation("softmax"),
            "callable": lambda: layers.Activation(softmax_of_channels),
            "layer": layers.Softmax,
            "in-activation": lambda: layers.Activation(layers.Softmax()),
        }
        y = last[form]()(layers.Conv2D(4, 3)(inputs))
    return keras.Model(inputs, y)


@pytest.mark.parametrize(
    "form", ["conv", "depthwise", "string", "callable", "layer", "in-activation"]
)
def test_a_softmax_on_a_map_is_over_the_channels(form):
    model = softmax_model(form)
    pixels = np.random.default_rng(0).normal(0, 1, (4, 5, 7, 3)).astype(np.float32)
    received = LoweredModel(model)(torch.from_numpy(pixels), Mode()).detach().numpy()
    assert np.allclose(received.sum(-1), 1, atol=1e-5)
    assert received.max() < 0.999
    assert np.allclose(received, model(pixels).detach().numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("form", "dtype"),
    [
        (form, dtype)
        for form in ("rescaling", "subtract", "add", "conv")
        for dtype in ("float32", "float64", "float16", "bfloat16", "int32", "uint8")
        if form != "conv" or "float" in dtype  # Keras convolves no whole numbers
    ],
)
def test_raw_images_are_cast_to_the_inputs_type(form, dtype):
    inputs = keras.Input((6, 6, 3), dtype=dtype)
    if form == "rescaling":
        y = layers.Rescaling(1 / 255, -0.5)(inputs)
    elif form == "subtract":
        y = inputs - 128
    elif form == "add":
        y = layers.Add()([inputs, inputs])
    else:
        y = layers.Conv2D(2, 3, strides=2, padding="same")(inputs)
    model = keras.Model(inputs, y)
    pixels = np.random.default_rng(0).integers(0, 256, (9, 6, 6, 3), np.uint8)
    expected = model(pixels, training=False).detach().float().numpy()
    assert np.allclose(predict(LoweredModel(model), pixels), expected, rtol=1e-5, atol=1e-5)
    received = LoweredModel(model)(torch.from_numpy(pixels), Mode(training=True))
    assert np.allclose(received.detach().float().numpy(), expected, rtol=1e-5, atol=1e-5)
    if dtype == "float32" and form == "subtract":
        assert np.array_equal(expected, pixels.astype(np.float32) - 128)
    if dtype == "float32" and form == "add":
        assert np.array_equal(expected, pixels.astype(np.float32) * 2)


def test_a_layer_with_a_low_rank_kernel_is_called_as_it_is():
    layer = layers.Conv2D(4, 3)
    model = model_of(layer)
    layer.enable_lora(2)
    shaken(model)
    lowered = LoweredModel(model)
    assert_same(
        passes(partial(lowered, mode=Mode(True)), model, PIXELS, upstream),
        passes(partial(model, training=True), model, PIXELS, upstream),
        2e-5,
    )


def test_an_array_that_is_added_is_not_forgotten():
    inputs = keras.Input(SHAPE)
    constant = torch.full((1, *SHAPE), 3.0)
    model = keras.Model(inputs, layers.Add()([inputs, constant]))
    received = LoweredModel(model)(torch.from_numpy(PIXELS), Mode())
    assert np.allclose(received.numpy(), PIXELS + 3)


def test_a_mask_reaches_the_layers_that_use_it():
    inputs = keras.Input(SHAPE)
    masked = layers.Masking(0.0)(inputs)
    y = layers.BatchNormalization()(layers.Activation("relu")(masked))
    model = shaken(keras.Model(inputs, y))
    x = PIXELS.copy()
    x[:2, :3] = 0
    lowered = LoweredModel(model)
    assert_same(
        passes(partial(lowered, mode=Mode(True)), model, x, upstream),
        passes(partial(model, training=True), model, x, upstream),
        2e-5,
    )


FEATURES = np.random.default_rng(5).normal(0.3, 1, (5, 6)).astype(np.float32)


@pytest.mark.parametrize(
    "make",
    [
        layers.Dense(3, activation="relu"),
        layers.Dense(3, activation="softmax"),
        layers.LayerNormalization(epsilon=0.1),
        layers.Activation("silu"),
        layers.ReLU(0.5),
        lambda x: layers.Add()([x, layers.Dense(6)(x)]),
        lambda x: layers.Multiply()([x, layers.Dense(1)(x)]),
        lambda x: layers.Concatenate()([x, layers.Dense(2)(x)]),
        layers.Flatten(),
        layers.Reshape((1, 2, 3)),
        layers.Reshape((3, 2)),
        layers.BatchNormalization(),
        layers.Dropout(0.4),
    ],
)
def test_features_give_what_keras_gives(make):
    inputs = keras.Input((6,))
    model = shaken(keras.Model(inputs, make(inputs)))
    for training in (False, True):
        if training and isinstance(model.layers[-1], layers.Dropout):
            continue
        assert_same(
            passes(partial(LoweredModel(model), mode=Mode(training)), model, FEATURES, upstream),
            passes(partial(model, training=training), model, FEATURES, upstream),
            2e-5,
        )


def in_two_processes(model, x):
    """The training passes of two processes, each on its part of x, and the gradients of x."""
    barrier, parts = Barrier(2), {}

    def process(rank, part):
        def sum_(tensor):
            parts[rank] = tensor
            barrier.wait()
            total = parts[0] + parts[1]
            barrier.wait()
            return total

        lowered, part = LoweredModel(keras.models.clone_model(model)), part.requires_grad_(True)
        y = lowered(part, Mode(True, sum_=sum_))
        return y.detach(), torch.autograd.grad((y**3).sum(), part)[0]

    with ThreadPoolExecutor(2) as pool:
        found = zip(*pool.map(process, (0, 1), x.split((3, len(x) - 3))), strict=True)
    return [torch.cat(several) for several in found]


@pytest.mark.parametrize("shape", [(6,), (16,), (4, 4, 6), (4, 4, 16), (1, 1, 6)])
@pytest.mark.parametrize("scale", [True, False])
def test_batch_norms_of_images_and_of_features_are_those_of_both_processes(shape, scale):
    inputs = keras.Input(shape)
    model = keras.Model(inputs, layers.BatchNormalization(scale=scale)(inputs))
    x = torch.from_numpy(np.random.default_rng(0).normal(3, 2, (8, *shape))).float()
    outputs, gradients = in_two_processes(model, x)
    x.requires_grad_(True)
    y = model(x, training=True)  # Keras, on the whole batch
    assert torch.allclose(outputs, y, atol=1e-5)
    assert torch.allclose(gradients, torch.autograd.grad((y**3).sum(), x)[0], atol=1e-4)


def test_dropout_of_features_drops_the_rate_and_its_gradient_is_its_output():
    inputs = keras.Input((40,))
    lowered = LoweredModel(keras.Model(inputs, layers.Dropout(0.4)(inputs)))
    given = torch.ones(200, 40, requires_grad=True)
    y = lowered(given, Mode(training=True, key=(1, 2, 3)))
    (slope,) = torch.autograd.grad(y.sum(), given)
    assert torch.equal(slope, y.detach())
    assert abs(float((y == 0).float().mean()) - 0.4) < 0.01
    assert torch.allclose(y[y != 0], torch.tensor(1 / 0.6))


@pytest.mark.parametrize(
    "make",
    [
        lambda x: (x + 3.0) * (1.0 / 6.0),
        lambda x: 1 - x,
        lambda x: x * 2 - x,
        lambda x: x - np.ones((1, 6, 6, 4), np.float32),
        lambda x: x / 2.0,
        lambda x: x * keras.ops.mean(x, axis=(1, 2), keepdims=True),
    ],
)
def test_arithmetic_gives_what_keras_gives(make):
    inputs = keras.Input(SHAPE)
    model = keras.Model(inputs, make(inputs))
    assert_same(
        passes(partial(LoweredModel(model), mode=Mode(True)), model, PIXELS, upstream),
        passes(partial(model, training=True), model, PIXELS, upstream),
        2e-5,
    )


def test_models_in_a_model_are_lowered_even_when_they_are_called_twice():
    inner = keras.Sequential(
        [keras.Input(SHAPE), layers.Conv2D(4, 3, padding="same"), layers.BatchNormalization()]
    )
    middle_input = keras.Input(SHAPE)
    middle = keras.Model(middle_input, layers.Add()([inner(middle_input), middle_input]))
    inputs = keras.Input(SHAPE)
    x = middle(inputs)
    y = layers.Multiply()([middle(layers.ReLU()(x)), inner(x), x])
    model = shaken(keras.Model(inputs, y))
    lowered = LoweredModel(model)
    assert not lowered.foreign
    for training in (False, True):
        assert_same(
            passes(partial(lowered, mode=Mode(training)), model, PIXELS, upstream),
            passes(partial(model, training=training), model, PIXELS, upstream),
            2e-5,
        )


def test_a_model_of_another_type_in_a_model_is_called_by_keras():
    inner = keras.Sequential([keras.Input(SHAPE), layers.ReLU()])
    inner.dtype_policy = keras.DTypePolicy("float64")
    inputs = keras.Input(SHAPE)
    model = keras.Model(inputs, inner(inputs))
    assert LoweredModel(model).foreign


@pytest.mark.parametrize("length", [6, 7, 8, 9])
@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_same_padding_is_that_of_tensorflow(length, size, stride):
    """By the definition in TensorFlow's documentation: the extra pixel comes at the end."""
    x = np.random.default_rng(length).normal(0, 1, (2, length, length + 1, 3)).astype(np.float32)
    outputs = [-(-n // stride) for n in x.shape[1:3]]
    totals = [
        max(0, (o - 1) * stride + size - n) for o, n in zip(outputs, x.shape[1:3], strict=True)
    ]
    pads = [(0, 0), *((t // 2, t - t // 2) for t in totals), (0, 0)]
    padded = np.pad(x, pads, constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), (1, 2))
    expected = windows[:, ::stride, ::stride].max((-2, -1))
    inputs = keras.Input(x.shape[1:])
    pooled = layers.MaxPooling2D(size, stride, "same")(inputs)
    received = LoweredModel(keras.Model(inputs, pooled))(torch.from_numpy(x), Mode())
    np.testing.assert_array_equal(received.numpy(), expected)


class Recorded(layers.Layer):
    """The dropout of a node of a graph, by what the engine draws for it."""

    def __init__(self, dropout, number, mode):
        super().__init__(dtype="float64")
        self.dropout, self.number, self.mode = dropout, number, mode

    def call(self, x, training=False):
        rate = self.dropout.rate
        if not training or rate == 0:
            return x
        if type(self.dropout) is layers.Dropout:  # of which the spatial one is a subclass
            kept = np.ones(x.numel())
            kept[self.mode.dropped(self.number, x.numel(), rate)] = 0
            kept = kept.reshape(x.shape)
        else:
            drawn = self.mode.draw(self.number, (len(x), x.shape[-1]))
            kept = (drawn >= rate)[:, None, None]
        return x * torch.from_numpy(kept / (1 - rate))


def random_model(seed):
    """A small graph with branches that are read several times, and layers that are shared."""
    rng = np.random.default_rng(seed)
    inputs = keras.Input(SHAPE, dtype="float64")
    made = {
        "conv": lambda: layers.Conv2D(4, 3, padding="same", dtype="float64"),
        "conv-softmax": lambda: layers.Conv2D(4, 1, activation="softmax", dtype="float64"),
        "bn": lambda: layers.BatchNormalization(dtype="float64"),
        "gn": lambda: layers.GroupNormalization(groups=2, dtype="float64"),
        "relu": lambda: layers.Activation("relu", dtype="float64"),
        "linear": lambda: layers.Activation("linear", dtype="float64"),
        "rescaling": lambda: layers.Rescaling(0.75, 0.125, dtype="float64"),
        "pool": lambda: layers.MaxPooling2D(1, dtype="float64"),
        "dropout": lambda: layers.Dropout(rng.choice([0.0, 0.3]), dtype="float64"),
        "spatial": lambda: layers.SpatialDropout2D(rng.choice([0.0, 0.3]), dtype="float64"),
        "identity": lambda: layers.Identity(dtype="float64"),
        "silu": lambda: layers.Activation("silu", dtype="float64"),
    }
    shared = {name: made[name]() for name in ("conv", "bn", "gn", "relu")}
    tensors = [layers.Rescaling(1.0, 0.0625, dtype="float64")(inputs)]
    for _ in range(int(rng.integers(4, 12))):
        # Mostly the newest tensor, so that chains are long.
        pick = lambda: tensors[-1 if rng.random() < 0.6 else int(rng.integers(len(tensors)))]  # noqa: E731
        name = str(rng.choice([*made, "add", "add", "relu", "add-one"]))
        if name == "add":
            tensors.append(layers.Add(dtype="float64")([pick(), pick()]))
        elif name == "add-one":
            tensors.append(layers.Add(dtype="float64")([pick()]))
        else:
            layer = shared[name] if name in shared and rng.random() < 0.3 else made[name]()
            tensors.append(layer(pick()))
    y = layers.Add(dtype="float64")([tensors[-1], tensors[int(rng.integers(len(tensors)))]])
    return shaken(keras.Model(inputs, y), seed)


@pytest.mark.parametrize("seed", range(80))
def test_random_graphs_equal_keras(seed):
    model, mode = random_model(seed), Mode(True, (seed, 0, 0))
    calls = [n.operation for n in nodes(functional_graph(model)) if not n.is_input]
    numbers = {layer: number for number, layer in enumerate(calls)}

    def recorded(layer):
        return Recorded(layer, numbers[layer], mode) if isinstance(layer, RANDOM) else layer

    truth = keras.models.clone_model(model, clone_function=recorded)
    lowered = LoweredModel(model)
    x = PIXELS.astype(np.float64)
    for training, how in ((False, Mode()), (True, mode)):
        expected = passes(partial(truth, training=training), model, x, upstream)
        received = passes(partial(lowered, mode=how), model, x, upstream)
        # Keras computes the means of its norms in float32, and norms behind each other magnify it.
        assert_same(received, expected, 1e-3)


@pytest.mark.parametrize("kind", ["spatial", "element"])
def test_a_residual_around_a_dropout_in_inference(kind):
    inputs = keras.Input((2, 2, 1))
    h = layers.Rescaling(1.0, -0.46)(inputs)
    drop = {"spatial": layers.SpatialDropout2D, "element": layers.Dropout}[kind]
    y = layers.Activation("relu")(drop(0.1)(h))
    model = keras.Model(inputs, layers.Add()([h, y]))
    received = LoweredModel(model)(torch.zeros(1, 2, 2, 1), Mode())
    assert np.allclose(received.numpy(), -0.46)
