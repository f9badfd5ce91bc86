"""What conversion refuses, the choice of groups, and norms of the user's own by name."""

import functools
import re
import sys

import keras
import pytest
from helpers.norm_nets import network, single
from keras import layers

from kerasnorm import convert_norm
from kerasnorm.conversion.norms import fitting_groups
from kerasnorm.errors import ConfigError
from kerasnorm.norms import Norm


@pytest.mark.parametrize(
    ("channels", "options", "groups"),
    [
        (96, {}, 32),
        (24, {}, 24),
        (44, {}, 22),
        (7, {"groups": 6}, 1),
        (24, {"group_size": 16}, 2),
        (96, {"group_size": 16}, 6),
        (7, {"group_size": 16}, 1),
        (16, {"positions": 1}, 8),
        (7, {"positions": 1, "groups": 7}, 1),
        (16, {"positions": 1, "group_size": 1}, 8),
    ],
)
def test_groups_are_the_largest_divisor(channels, options, groups):
    assert fitting_groups(channels, **options) == groups


def test_a_norm_by_module_and_name(tmp_path, monkeypatch):
    (tmp_path / "own_norms.py").write_text(
        "import keras\n"
        "def instance(channels, name):\n"
        "    return keras.layers.GroupNormalization(channels, name=name)\n"
        "def nameless(channels, name):\n"
        "    return keras.layers.GroupNormalization(channels)\n"
        "def failing(channels, name):\n"
        "    raise RuntimeError('no such width')\n"
        "number = 3\n"
        "from kerasnorm.norms import Norm\n"
        "EMPTY = Norm(name='empty', layer=None, color='#000000')\n"
        "RECORD = Norm(name='own', color='#000000',\n"
        "    layer=lambda config, width, **common: keras.layers.GroupNormalization(2, **common))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    done = convert_norm(network(), "own_norms:instance")
    assert [row.groups for row in done.layers] == [6, 6, 4, 8]
    done = convert_norm(network(), "own_norms:RECORD")
    assert [row.groups for row in done.layers] == [2, 2, 2, 2]
    for text, message in {
        "own_norms:missing": "expected the name of a function or class of own_norms. "
        "Received: missing",
        "no_such_module:Norm": "importing no_such_module raised ModuleNotFoundError",
        "own_norms:": "expected package.module:name",
        "own_norms:number": "a function",
        "own_norms:EMPTY": "a kerasnorm.norms.Norm with a layer",
    }.items():
        with pytest.raises(ConfigError, match=message):
            convert_norm(network(), text)
    with pytest.raises(ConfigError, match="with 6 channels raised RuntimeError: no such width"):
        convert_norm(network(), "own_norms:failing")
    with pytest.raises(ConfigError, match="a Keras layer named 'bn'"):
        convert_norm(network(), "own_norms:nameless")


def failing(channels, name):
    raise RuntimeError("no such width")


class Factory:
    """Makes no layer."""

    def __call__(self, channels, name):
        return self


RECORD = Norm(name="own", color="#000000", layer=lambda config, channels, **common: None)
TITLES = {
    "a function": (failing, "{module}:failing"),
    "a class": (layers.Dense, "keras.src.layers.core.dense:Dense"),
    "an object": (Factory(), "<{module}.Factory object>"),
    "a record": (RECORD, "the Norm 'own'"),
    "a partial function": (functools.partial(failing), "functools.partial(<function failing>)"),
}


@pytest.mark.parametrize("title", TITLES)
def test_a_norm_of_the_users_own_is_named_in_messages_without_an_address(title):
    norm, text = TITLES[title]
    text = text.format(module=__name__)
    model = single(layers.BatchNormalization())
    with pytest.raises(ConfigError, match=f"Received: norm={re.escape(text)}$"):
        convert_norm(model, norm, groups=2)
    with pytest.raises(ConfigError, match=re.escape(text)) as raised:
        convert_norm(model, norm)
    assert " at 0x" not in str(raised.value)


class BlockWithNorm(layers.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.norm = layers.BatchNormalization()

    def call(self, x):
        return self.norm(x)


class MyNorm(layers.Layer):
    """Not known to the package."""

    def call(self, x):
        return x


class Thirds(layers.Layer):
    """A norm of the user's that does not call itself one."""

    def call(self, x):
        return x / 3


REFUSED = {
    "Received: none. Layers of your own are not converted: Thirds.": (Thirds, {}),
    "Received: none.$": (layers.ReLU, {}),
    r"is over axis \[1\] of": (lambda: layers.BatchNormalization(axis=1), {}),
    r"is over axis \[1, 2\] of": (lambda: layers.LayerNormalization(axis=(1, 2)), {}),
    "is a MyNorm, a class that this package does not know": (MyNorm, {}),
    "holds a BatchNormalization inside": (BlockWithNorm, {}),
    "one of 1, 2, 4, 8. Received: groups=3": (layers.BatchNormalization, {"groups": 3}),
    "Received: groups=0": (layers.BatchNormalization, {"groups": 0}),
    "Received: group_size=5": (layers.BatchNormalization, {"group_size": 5}),
    "expected one of the two": (layers.BatchNormalization, {"groups": 2, "group_size": 4}),
    "only gn reads them": (layers.BatchNormalization, {"groups": 2, "norm": "ln"}),
    "expected a Conv2D with a norm": (layers.BatchNormalization, {"weight_standardization": True}),
    "bnn": (layers.BatchNormalization, {"norm": "bnn"}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_converted_is_refused(message):
    make, options = REFUSED[message]
    with pytest.raises(ConfigError, match=message):
        convert_norm(single(make()), **({"norm": "gn"} | options))


def test_other_models_are_refused():
    class Subclassed(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ConfigError, match="Expected a functional model"):
        convert_norm(Subclassed(), "gn")
    vector = single(layers.BatchNormalization(), (8,))
    with pytest.raises(ConfigError, match="a map of one position"):
        convert_norm(vector, "in")
    assert convert_norm(vector, "gn", groups=8).layers[0].groups == 4
