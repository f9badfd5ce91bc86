"""Networks other than the built-in one, compared with Keras's own layers and by hand."""

import os
import string
import sys

import keras
import numpy as np
import pytest
from helpers import tiny
from helpers.command import call
from keras import layers

import kerasnorm
from kerasnorm import user_code
from kerasnorm.cli import app
from kerasnorm.config import resolve, to_toml
from kerasnorm.conversion.rebuild import rebuild
from kerasnorm.errors import ConfigError, CorruptFileError
from kerasnorm.formats.archive import load_model, open_model, save_model
from kerasnorm.layers import instance_norms, portable
from kerasnorm.network import build_model
from kerasnorm.training.fit import make_engine

pytestmark = pytest.mark.backend("any")
CODE = """
import keras
from keras import layers

def small(input_shape, classes):
    return keras.Sequential([
        keras.Input(input_shape),
        layers.Conv2D(4, 3, strides=2, name="conv"),
        layers.BatchNormalization(name="norm"),
        layers.ReLU(),
        layers.GlobalAveragePooling2D(),
        layers.Dense(classes, name="head"),
    ], name="small")

def broken(input_shape, classes):
    raise RuntimeError("no weights\\nhere")

def leaving(input_shape, classes):
    raise SystemExit(3)

class Misspelled(layers.Layer):
    def call(self, x):
        return keras.ops.mean(x, axs=1)

def calling(input_shape, classes):
    image = keras.Input(input_shape)
    return keras.Model(image, Misspelled()(image))

def empty(input_shape, classes):
    return "a model"

def fixed(input_shape, classes):
    return small(input_shape, 7)

class Subclassed(keras.Model):
    def __init__(self, input_shape, classes):
        super().__init__()
"""
PIXELS = np.random.default_rng(3).integers(0, 256, (5, 8, 8, 3)).astype(np.float32)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.fixture
def code(tmp_path):
    """Returns the path of a file of functions that make networks."""
    path = tmp_path / "nets.py"
    path.write_text(CODE)
    return path


def make(network, **options):
    options = {"input_shape": (8, 8, 3), "classes": 4, "mean": MEAN, "std": STD} | options
    return build_model(network=str(network), **options)


def numbers(tensor):
    return keras.ops.convert_to_numpy(tensor)


def saved(tmp_path, *, activation="softmax", classes=4):
    """Returns the path of a .keras file with a nested model and a softmax, and its model."""
    inner = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(5, 3), layers.ReLU()])
    image = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D()(inner(image))
    model = keras.Model(image, layers.Dense(classes, activation=activation, name="head")(x))
    path = tmp_path / "model.keras"
    model.save(path)
    return path, model


def test_pixels_are_rescaled_before_a_network_that_does_not(code):
    model = make(f"{code}:small")
    assert model.input.name == "pixels"
    rescaled = (PIXELS / 255 - MEAN) / STD
    expected = model.get_layer("conv")(rescaled.astype(np.float32))
    found = keras.Model(model.input, model.get_layer("conv").output)(PIXELS)
    np.testing.assert_allclose(numbers(found), numbers(expected), rtol=1e-4, atol=1e-4)
    assert model.output_shape == (None, 4)


@pytest.mark.backend("any", long_on="tensorflow")
def test_a_network_that_rescales_pixels_keeps_its_own_rescaling():
    model = make("keras:EfficientNetB0", input_shape=(32, 32, 3))
    names = [layer.name for layer in model.layers]
    assert "input_rescaling" not in names
    assert names[1].startswith("rescaling")
    assert model.layers[1].scale == pytest.approx(1 / 255)


def test_pretrained_weights_give_the_logarithm_of_the_probabilities(tmp_path):
    path, original = saved(tmp_path)
    model = make(path, pretrained=True)
    rescaled = ((PIXELS / 255 - MEAN) / STD).astype(np.float32)
    expected = np.log(numbers(original(rescaled)))
    found = numbers(model(PIXELS))
    found = found - np.log(np.exp(found).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(found, expected, atol=1e-4)


SOFTMAXES = {
    "argument": lambda x: layers.Dense(4, "softmax")(layers.Dense(3)(x)),
    "layer": lambda x: layers.Softmax()(layers.Dense(4)(x)),
    "activation": lambda x: layers.Activation("softmax")(layers.Dense(4)(x)),
    "operation": lambda x: keras.ops.softmax(layers.Dense(4)(x)),
    "function": lambda x: keras.activations.softmax(layers.Dense(4)(x)),
    "convolution": lambda x: layers.Flatten()(
        layers.Softmax()(layers.Conv2D(4, 1)(layers.Reshape((1, 1, 3))(x)))
    ),
    "model": lambda x: keras.Sequential([layers.Dense(4), layers.Softmax()])(layers.ReLU()(x)),
}


@pytest.mark.parametrize("kind", SOFTMAXES)
def test_every_kind_of_softmax_at_the_end_is_left_out(tmp_path, kind):
    image = keras.Input((8, 8, 3))
    original = keras.Model(image, SOFTMAXES[kind](layers.GlobalAveragePooling2D()(image)))
    original.save(tmp_path / "model.keras")
    logits = numbers(make(tmp_path / "model.keras", pretrained=True)(PIXELS))
    rescaled = ((PIXELS / 255 - MEAN) / STD).astype(np.float32)
    probabilities = numbers(original(rescaled))
    assert not np.allclose(logits.sum(axis=1), 1)
    exponents = np.exp(logits)
    found = exponents / exponents.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, probabilities, atol=1e-5)


def frozen(tmp_path):
    """Returns the path of a file whose convolution, norm and head are frozen."""
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3, name="conv"),
            layers.BatchNormalization(center=False, scale=False, name="plain"),
            keras.Sequential([layers.BatchNormalization(name="norm")]),
            layers.GlobalAveragePooling2D(),
            layers.Dense(9, name="head"),
        ]
    )
    model.trainable = False
    model.get_layer("plain").trainable = True
    model.save(tmp_path / "frozen.keras")
    return tmp_path / "frozen.keras"


def flags(model):
    inner = {layer.name: layer for layer in model._flatten_layers()}
    return {name: inner[name].trainable for name in ("conv", "plain", "norm", "head")}


def test_layers_whose_weights_are_kept_stay_frozen_and_new_ones_are_trained(tmp_path, caplog):
    path = frozen(tmp_path)
    found = make(path, pretrained=True, new_head=True)
    assert flags(found) == {"conv": False, "plain": True, "norm": False, "head": True}
    assert [weight.path for weight in found.trainable_variables] == ["head/kernel", "head/bias"]
    assert not caplog.records
    anew = make(path, new_head=True)
    assert set(flags(anew).values()) == {True}
    assert len(anew.trainable_variables) == 6
    (record,) = caplog.records
    assert f"2 frozen layers of {path} get new weights" in record.getMessage()
    with pytest.raises(ConfigError, match=r"expected weights to train.*frozen"):
        make(path, classes=9, pretrained=True)


@pytest.mark.backend("any", long_on="tensorflow")
@pytest.mark.long
def test_weights_are_drawn_anew_by_the_seed_even_where_a_file_holds_seeds(tmp_path, code):
    path = tmp_path / "built.keras"
    build_model("bn", input_shape=(8, 8, 3), classes=4).save(path)
    for network in (path, f"{code}:small"):
        first, same, other = (make(network, seed=seed).get_weights() for seed in (0, 0, 1))
        for one, two in zip(first, same, strict=True):
            np.testing.assert_array_equal(one, two)
        assert not np.allclose(first[0], other[0])
        assert np.std(first[0]) > 0
    drawn = make(path, seed=1).get_layer("convblock1_conv2").get_weights()[0]
    kernel = keras.saving.load_model(path).get_layer("convblock1_conv2").get_weights()[0]
    assert not np.allclose(drawn, kernel)


def test_a_new_head_has_the_classes_of_the_data_and_the_rest_its_weights(tmp_path):
    path, original = saved(tmp_path, classes=9)
    with pytest.raises(ConfigError, match=r"expected logits of shape \(N, 4\).*--new-head"):
        make(path)
    model = make(path, new_head=True, pretrained=True)
    assert model.output_shape == (None, 4)
    np.testing.assert_array_equal(
        model.layers[2].layers[0].get_weights()[0], original.layers[1].layers[0].get_weights()[0]
    )


def test_a_new_head_may_be_a_convolution_that_is_reshaped(tmp_path):
    image = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D(keepdims=True)(image)
    x = layers.Reshape((9,))(layers.Conv2D(9, 1, name="head")(x))
    keras.Model(image, layers.Activation("softmax")(x)).save(tmp_path / "reshaped.keras")
    model = make(tmp_path / "reshaped.keras", new_head=True)
    assert model.output_shape == (None, 4)
    assert model.get_layer("head").filters == 4


def test_half_precision_reaches_all_layers_but_the_last(code):
    model = make(f"{code}:small", precision="mixed_bfloat16")
    assert model.get_layer("conv").compute_dtype == "bfloat16"
    assert model.get_layer("head").compute_dtype == "float32"


AROUND = """
@keras.saving.register_keras_serializable(package="around")
class Own(layers.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.parts = [layers.BatchNormalization(), layers.GaussianNoise(0.1)]

    def call(self, x, training=None):
        for part in self.parts:
            x = part(x, training=training)
        return x if training else 2 * x

def around(input_shape, classes):
    pixels = keras.Input(input_shape)
    x = layers.Conv2D(4, 3, strides=4, padding="same")(pixels)
    x = layers.GlobalAveragePooling2D()(LAYER(x))
    return keras.Model(pixels, layers.Dense(classes, name="head")(x))
"""
HOLDING = {  # layers that hold others
    "Own": "Own()",
    "SpectralNormalization": "layers.SpectralNormalization(layers.Conv2D(5, 3))",
    "a wrapped norm": "layers.TimeDistributed(layers.BatchNormalization())",
    "a wrapped model": "layers.TimeDistributed(keras.Sequential([layers.Conv1D(5, 3)]))",
    "two wrappers": "layers.TimeDistributed(layers.Bidirectional(layers.LSTM(3, "
    "return_sequences=True)))",
    "Pipeline": "layers.Pipeline([layers.RandomFlip(), layers.GaussianNoise(0.1)])",
}
SINGLE = {
    "RandomFlip": "layers.RandomFlip()",
    "RandomCrop": "layers.RandomCrop(6, 6)",
    "RandomRotation": "layers.RandomRotation(0.1)",
    "GaussianNoise": "layers.GaussianNoise(0.2)",
    "GaussianDropout": "layers.GaussianDropout(0.2)",
    "AlphaDropout": "layers.AlphaDropout(0.2)",
    "ActivityRegularization": "layers.ActivityRegularization(0.01)",
    "UnitNormalization": "layers.UnitNormalization()",
    "Normalization": "layers.Normalization(mean=[1, 2, 3, 4], variance=[4, 3, 2, 1])",
}


def around(tmp_path, layer):
    path = tmp_path / "around.py"
    path.write_text(CODE + AROUND.replace("LAYER", layer))
    return path


def float_types(layer):
    parts = layer._flatten_layers()
    return {p.compute_dtype for p in parts if not isinstance(p, layers.InputLayer)}


@pytest.mark.parametrize("name", HOLDING)
def test_half_precision_reaches_the_layers_in_a_layer_and_its_copies(name, tmp_path):
    def held(model):
        kept = ("input_rescaling", "head")
        return set().union(*(float_types(x) for x in model.layers[1:] if x.name not in kept))

    path = around(tmp_path, HOLDING[name])
    model = make(f"{path}:around", input_shape=(32, 32, 3), precision="mixed_bfloat16")
    assert held(model) == held(rebuild(model, {})[0]) == {"bfloat16"}
    assert held(portable(model)) == {"float32"}
    kinds = {str(v.dtype) for v in model.variables if not v.path.endswith("seed_generator_state")}
    assert kinds == {"float32"}


@pytest.mark.backend("any", long_on="tensorflow")
@pytest.mark.parametrize("name", {**HOLDING, **SINGLE})
def test_a_layer_of_any_kind_is_trained_as_keras_trains_it(name, tmp_path):
    """Losses and the state after an epoch: weights, statistics, momenta, random generators."""
    path = around(tmp_path, (HOLDING | SINGLE)[name])
    small = {key: value for key, value in tiny.TINY.items() if key != "widths"}
    native, stock = (
        make_engine(
            resolve(
                small
                | {"network": f"{path}:around", "engine": engine, "optimizer": "sgd"}
                | {"backend": keras.backend.backend(), "learning_rate": 0.01, "batch_size": 20}
            ),
            tiny.dataset(),
        )
        for engine in ("native", "keras")
    )
    assert (type(native) is type(stock)) == (name == "ActivityRegularization")
    tiny.assert_same_epoch(native, stock)
    for key, array in stock.state().items():
        assert np.allclose(array, native.state()[key], rtol=1e-4, atol=1e-6), key


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", "raised RuntimeError: no weights here$"),
        ("leaving", "raised SystemExit: 3$"),
        ("calling", r"raised TypeError: .* Misspelled.call\(\)\. .*mean\(\).* argument 'axs'$"),
        ("empty", r"to return a keras.Model. Received: str$"),
        ("fixed", r"expected logits of shape \(N, 4\).*as wide as the number of classes"),
        ("missing", "expected the name of a function or class of .*nets.py. Received: missing"),
        ("Subclassed", "network: .*nets.py:Subclassed: Expected a functional model"),
    ],
)
def test_a_function_that_makes_no_network_is_refused_in_one_line(code, name, message):
    with pytest.raises(ConfigError, match=message) as caught:
        make(f"{code}:{name}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("keras:MobilNetV2", "Did you mean keras:MobileNetV2"),
        ("resnet", "expected builtin, keras:NAME, a .keras file"),
        ("no_such_module:build", "importing no_such_module raised ModuleNotFoundError"),
        ("no/such/file.py:build", "there is no such file"),
        ("keras:InceptionV3", "raised ValueError: Input size must be at least 75x75"),
    ],
)
def test_a_network_that_cannot_be_made_is_refused_in_one_line(network, message):
    with pytest.raises(ConfigError, match=message) as caught:
        make(network)
    assert "\n" not in str(caught.value)


def test_outputs_that_are_no_logits_are_refused(tmp_path):
    path, _ = saved(tmp_path, activation="sigmoid")
    with pytest.raises(
        ConfigError, match=r"or a softmax of them\. .*which ends in .*Dense \(sigmoid\)$"
    ):
        make(path)


def test_images_of_another_shape_are_refused_with_the_size_to_resize_to(tmp_path):
    path, _ = saved(tmp_path)
    with pytest.raises(ConfigError, match="Resize them with --image-size 8,8"):
        make(path, input_shape=(16, 16, 3))
    with pytest.raises(ConfigError, match=r"takes images of shape \(8, 8, 3\)") as caught:
        make(path, input_shape=(8, 8, 1), mean=(0.5,), std=(0.2,))
    assert "image-size" not in str(caught.value)


def test_networks_that_classify_no_images_are_refused_with_what_to_do(tmp_path):
    image, words = keras.Input((8, 8, 3)), keras.Input((6,), dtype="int32")
    x = layers.GlobalAveragePooling2D()(image)
    heads = keras.Model(image, [layers.Dense(4)(x), layers.Dense(2)(x)])
    embedded = layers.GlobalAveragePooling1D()(layers.Embedding(9, 5)(words))
    texts = keras.Model(words, layers.Dense(4)(embedded))
    any_size = keras.Input((None, None, 3))
    open_sized = keras.Model(any_size, layers.Conv2D(4, 1)(any_size))
    for name, model, advice in [
        ("heads", heads, r"keras\.Model\(model\.inputs\[0\], model\.outputs\[0\]\)"),
        ("texts", texts, "are for kerasnorm convert and kerasnorm explain --network alone"),
        ("open", open_sized, "Build it for images of one size"),
    ]:
        path = tmp_path / f"{name}.keras"
        model.save(path)
        with pytest.raises(CorruptFileError, match=f"{name}.keras: expected a.*{advice}"):
            open_model(path)
        if name != "open":
            with pytest.raises(ConfigError, match=f"{name}.keras with.*{advice}"):
                make(path)
    # The advice, followed, helps.
    part = keras.Model(heads.inputs[0], heads.outputs[0])
    part.save(tmp_path / "part.keras")
    assert make(tmp_path / "part.keras").output_shape == (None, 4)


def test_a_network_whose_norms_cannot_be_replaced_is_named_as_the_user_did(tmp_path):
    path, model = saved(tmp_path)
    with pytest.raises(ConfigError) as caught:
        make(path, norm="gn")  # it has none to replace
    assert str(caught.value).startswith(f"{path}: ")
    assert model.name not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"network": "keras:VGG16", "widths": (16,) * 10}, "widths"),
        ({"network": "keras:VGG16", "dropout": 0.1}, "dropout"),
        ({"network": "keras:VGG16", "pretrained": True}, "pretrained"),
        ({"network": "keras:VGG16", "new_head": True}, "new_head"),
        ({"new_head": True}, "new_head"),
        ({"norm": "keep"}, "norm"),
    ],
)
def test_a_field_that_the_network_does_not_read_is_refused_by_name(fields, name):
    with pytest.raises(ConfigError, match=f"^{name}: "):
        resolve(fields)


def test_another_network_has_the_plain_recipe_and_keeps_its_norms_by_default():
    config = resolve({"network": "keras:VGG16"})
    assert (config.recipe, config.model.norm) == ("plain", "keep")
    assert (config.train.optimizer, config.train.schedule) == ("sgd", "cosine")
    assert resolve({}).recipe == "best"
    assert "widths" not in to_toml(config)
    import tomllib

    assert resolve(document=tomllib.loads(to_toml(config))) == config
    assert config.hash() != resolve({"recipe": "plain"}).hash()


def norm_of(model, name="norm"):
    return model.get_layer(name)


def test_norms_are_replaced_and_keep_names_and_all_other_weights_are_drawn_alike(code):
    kept = make(f"{code}:small")
    assert isinstance(norm_of(kept), layers.BatchNormalization)
    for norm, kind in [
        ("gn", layers.GroupNormalization),
        ("ln", layers.GroupNormalization),
        ("lnc", layers.LayerNormalization),
        ("rms", layers.RMSNormalization),
    ]:
        model = make(f"{code}:small", norm=norm)
        assert type(norm_of(model)) is kind
        np.testing.assert_array_equal(
            model.get_layer("conv").get_weights()[0], kept.get_layer("conv").get_weights()[0]
        )
    assert [layer.name for layer in make(f"{code}:small", norm="none").layers].count("norm") == 0
    assert norm_of(make(f"{code}:small", norm="gn")).groups == 4  # of 32 wanted, for 4 channels
    assert norm_of(make(f"{code}:small", norm="gn", group_size=2)).groups == 2
    assert norm_of(make(f"{code}:small", norm="gn", groups=2)).groups == 2


@pytest.mark.parametrize(
    ("options", "is_said"),
    [({}, True), ({"group_size": 2}, False), ({"group_size": 1}, True), ({"groups": 2}, False)],
)
def test_groups_of_one_channel_are_said_to_be_instance_normalization(
    code, caplog, options, is_said
):
    """Four channels: 32 groups are wanted by default, and 4 are taken."""
    model = make(f"{code}:small", norm="gn", **options)
    assert instance_norms(model) == (int(is_said), 1)
    assert (f"in 1 of 1 norms of {code}:small each" in caplog.text) == is_said
    assert ("instance normalization" in caplog.text) == is_said


@pytest.mark.parametrize("options", [{"scale": False}, {"center": False}, {}])
@pytest.mark.parametrize(("groups", "alone"), [(8, 1), (-1, 1), (4, 0), (1, 0)])
def test_instance_norms_are_known_without_scale_and_shift(options, groups, alone):
    options = options or {"scale": False, "center": False}
    norm = layers.GroupNormalization(groups, **options)
    model = keras.Sequential([keras.Input((4, 4, 8)), norm, layers.BatchNormalization()])
    assert instance_norms(model) == (alone, 1)


def test_kernels_are_standardized_on_demand(code):
    from kerasnorm.layers import StandardizedConv2D

    model = make(f"{code}:small", weight_standardization=True)
    assert isinstance(model.get_layer("conv"), StandardizedConv2D)


def test_convolutions_that_are_not_standardized_are_named(tmp_path, caplog):
    """A depthwise one has no standardized form; behind the first and the last there is no norm."""
    (tmp_path / "nets.py").write_text(
        "import keras\nfrom keras import layers\n"
        "def net(input_shape, classes):\n"
        "    return keras.Sequential([\n"
        "        keras.Input(input_shape), layers.Conv2D(4, 3, name='first'),\n"
        "        layers.DepthwiseConv2D(3, name='deep'), layers.GroupNormalization(2),\n"
        "        layers.Conv2D(4, 1), layers.BatchNormalization(),\n"
        "        layers.Conv2D(classes, 1, name='last'), layers.GlobalAveragePooling2D(),\n"
        "        layers.Dense(classes)])\n"
    )
    caplog.set_level("INFO", "kerasnorm")
    make(f"{tmp_path / 'nets.py'}:net", weight_standardization=True, norm="bn")
    assert [text for text in caplog.messages if "rescale" not in text] == [
        "Not standardized: 2 Conv2D (no norm behind it), such as first.",
        "Not standardized: 1 DepthwiseConv2D (no standardized form), such as deep.",
    ]


NORM = """
import keras
from kerasnorm.norms import Norm

@keras.saving.register_keras_serializable(package="test_foreign")
class Halved(keras.layers.Layer):
    def call(self, x):
        return x / 2

def by_width(channels, name):
    return keras.layers.GroupNormalization(channels // 2, name=name)

RECORD = Norm(
    name="record", layer=lambda config, channels, **common: Halved(**common), color="#000000"
)
"""


@pytest.mark.parametrize("name", ["Halved", "by_width", "RECORD"])
def test_a_norm_of_the_users_own_works_in_any_network(code, tmp_path, name):
    path = tmp_path / "norms.py"
    path.write_text(NORM)
    for model in (
        make(f"{code}:small", norm=f"{path}:{name}"),
        build_model(f"{path}:{name}", input_shape=(8, 8, 3), classes=4),
    ):
        layer = next(layer for layer in model.layers if "norm" in layer.name)
        if name == "by_width":
            assert layer.groups == model.get_layer(layer.name).input.shape[-1] // 2
        else:
            x = np.ones((1, 2, 2, 4), np.float32)
            np.testing.assert_array_equal(numbers(layer(x)), x / 2)


def test_a_file_of_code_finds_its_neighbours_and_itself(tmp_path):
    """Imports at its top and in its functions, dataclasses, and the name of a known module."""
    (tmp_path / "neighbours_of_nets.py").write_text("WIDTH = 6")
    (tmp_path / "late_neighbours.py").write_text("NAME = 'late'")
    (tmp_path / "string.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from neighbours_of_nets import WIDTH\n"
        f"{CODE}"
        "@dataclass\n"
        "class Width:\n"
        "    value: int = WIDTH\n"
        "def wide(input_shape, classes):\n"
        "    from late_neighbours import NAME\n"
        "    image = keras.Input(input_shape)\n"
        "    x = layers.Conv2D(Width().value, 3, name=NAME)(image)\n"
        "    x = layers.GlobalAveragePooling2D()(x)\n"
        "    return keras.Model(image, layers.Dense(classes)(x))\n"
    )
    assert make(f"{tmp_path}/string.py:wide").get_layer("late").filters == 6
    assert sys.modules["string"] is string  # that of Python, which others use


def test_a_norm_of_the_users_own_that_fails_is_refused_in_one_line(code):
    with pytest.raises(ConfigError, match=r"norm: importing .*none.py raised FileNotFoundError"):
        make(f"{code}:small", norm="none.py:Norm")
    with pytest.raises(ConfigError, match=r"norm: .*broken.* raised RuntimeError"):
        make(f"{code}:small", norm=f"{code}:broken")


MISTAKEN = """
import keras

class First(keras.layers.Layer):
    def call(self, x):
        return x[..., :1]

class Means(keras.layers.Layer):
    def call(self, x):
        return keras.ops.mean(x, axis=(1, 2))

class Eights(keras.layers.GroupNormalization):
    def __init__(self, **options):
        super().__init__(groups=8, **options)

class Raising(keras.layers.Layer):
    def call(self, x):
        raise KeyError("gamma")

class Misspelled(keras.layers.Layer):
    def call(self, x):
        return keras.ops.mean(x, axs=1)

class Trained(keras.layers.Layer):
    def call(self, x, training):
        return x
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("First", "outputs of the shape of the inputs.*a First, with outputs of shape"),
        ("Means", "outputs of the shape of the inputs.*a Means, with outputs of shape"),
        ("Eights", "a Eights, with inputs of shape .* raised ValueError: "),
        ("Raising", "a Raising, with inputs of shape .* raised KeyError: 'gamma'$"),
        ("Misspelled", r"a Misspelled, .* raised TypeError: mean\(\) .* argument 'axs'$"),
        ("Trained", "a Trained, .* raised TypeError: Trained.* argument: 'training'$"),
    ],
)
@pytest.mark.backend("any", long_on="tensorflow")
def test_a_norm_that_fails_on_its_inputs_or_changes_their_shape_is_named(
    code, tmp_path, name, message
):
    norm = tmp_path / "mistaken.py"
    norm.write_text(MISTAKEN)
    with pytest.raises(ConfigError, match=message):
        make(f"{code}:small", norm=f"{norm}:{name}")
    with pytest.raises(ConfigError, match=message):
        build_model(f"{norm}:{name}", widths=(4,) * 10)
    with pytest.raises(ConfigError, match=message):
        kerasnorm.explain(f"{norm}:{name}")


def test_a_model_with_layers_of_the_user_is_opened_where_their_code_is_trusted(
    code, tmp_path, monkeypatch
):
    monkeypatch.delenv(user_code.TRUST, raising=False)
    norms = tmp_path / "trusted.py"
    norms.write_text(NORM.replace("Halved", "Thirds").replace("x / 2", "x / 3"))
    model = make(f"{code}:small", norm=f"{norms}:Thirds")
    path = tmp_path / "model.keras"
    save_model(model, path, {})
    expected = numbers(model(PIXELS))
    np.testing.assert_allclose(numbers(load_model(path)(PIXELS)), expected, atol=1e-5)
    monkeypatch.setenv(user_code.TRUST, "")  # as in another process
    with pytest.raises(CorruptFileError, match=r"needs trusted.Thirds.*--trust"):
        load_model(path)
    user_code.trust(str(norms))
    np.testing.assert_allclose(numbers(load_model(path)(PIXELS)), expected, atol=1e-5)
    monkeypatch.setenv(user_code.TRUST, "no_such_module")
    with pytest.raises(ConfigError, match="trust: importing no_such_module raised"):
        load_model(path)


CUSTOM = """
import keras

registered = keras.saving.register_keras_serializable(package="%(package)s")

@registered
class Tenths(keras.initializers.Initializer):
    def __call__(self, shape, dtype=None):
        return keras.ops.full(shape, 0.1, dtype)

@registered
class Cubes(keras.regularizers.Regularizer):
    def __call__(self, x):
        return keras.ops.sum(keras.ops.abs(x) ** 3)

    def get_config(self):
        return {}

@registered
class Clipped(keras.constraints.Constraint):
    def __call__(self, w):
        return keras.ops.clip(w, -1, 1)

@registered
def doubled(x):
    return 2 * x
"""


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("kernel_initializer", "Tenths"),
        ("kernel_regularizer", "Cubes"),
        ("kernel_constraint", "Clipped"),
        ("activation", "doubled"),
    ],
)
def test_what_a_layer_holds_of_the_user_is_opened_where_its_code_is_trusted(
    tmp_path, monkeypatch, option, name
):
    code, path = tmp_path / f"of_{name}.py", tmp_path / "model.keras"
    code.write_text(CUSTOM % {"package": name})
    monkeypatch.setenv(user_code.TRUST, "")
    held = user_code.load(f"{code}:{name}", "network")
    layer = keras.layers.Dense(3, **{option: held if option == "activation" else held()})
    model = keras.Sequential([keras.Input((4,)), layer])
    model.save(path)
    assert np.array_equal(load_model(path).get_weights()[0], model.get_weights()[0])
    monkeypatch.setenv(user_code.TRUST, "")  # as in another process
    monkeypatch.delitem(keras.saving.get_custom_objects(), f"{name}>{name}")
    with pytest.raises(CorruptFileError, match=f"{name}.*--trust file.py"):
        load_model(path)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("keras.layers.Lambda(lambda x: x / 255, name='code')", "is a Lambda. It holds code"),
        ("keras.layers.Lambda(keras.ops.abs, name='code')", "is a Lambda. It holds code"),
        ("Local(name='code')", "top of their module.* 'code' of make.<locals>.Local$"),
    ],
)
def test_a_network_of_which_no_saved_model_could_be_opened_is_refused(tmp_path, layer, message):
    code = tmp_path / "network.py"
    code.write_text(
        "import keras\n\ndef make(input_shape, classes):\n"
        "    x = pixels = keras.Input(input_shape)\n"
        "    class Local(keras.layers.Layer):\n"
        "        def call(self, x):\n"
        "            return x\n"
        f"    x = {layer}(x)\n"
        "    x = keras.layers.Flatten()(x)\n"
        "    return keras.Model(pixels, keras.layers.Dense(classes)(x))\n"
    )
    with pytest.raises(ConfigError, match=message):
        make(f"{code}:make")


def test_a_network_of_a_file_with_layers_of_the_user_is_built_where_they_are_trusted(tmp_path):
    norms = tmp_path / "layers.py"
    norms.write_text(NORM.replace("Halved", "Fifths").replace("x / 2", "x / 5"))
    path = tmp_path / "model.keras"
    save_model(build_model(f"{norms}:Fifths", input_shape=(8, 8, 3), classes=4), path, {})
    words = ["summary", "--network", path, "--image-shape", "8,8,3", "--classes", "4"]
    os.environ[user_code.TRUST] = ""  # as in another process
    assert "--trust" in call(*words, code=5)[1]
    assert "Fifths" in call(*words, "--trust", norms)[0]


def test_every_command_that_opens_a_network_has_the_option_that_trusts_code():
    for name, command in app.commands.items():
        options = {option for parameter in command.params for option in parameter.opts}
        assert "--network" not in options or "--trust" in options, name
