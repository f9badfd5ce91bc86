"""Each norm is what its definition says, on the backend that runs."""

import dataclasses
import json
from typing import NamedTuple

import numpy as np
import pytest
from helpers.averaging import Averaging
from hypothesis import given
from hypothesis import strategies as st

from kerasnorm.analysis.norm import (
    CUBE,
    batch_of_one,
    explain,
    explanation_text,
    normalize,
    shared_by_perturbation,
    worked_example,
)
from kerasnorm.errors import ConfigError
from kerasnorm.norms import NORMS

pytestmark = pytest.mark.backend("any")

EXPLAINED = tuple(name for name, norm in NORMS.items() if norm.facts)
PLACES = [(0, 0, 0, 0), (1, 1, 2, 5), (2, 0, 1, 7)]


class Expected(NamedTuple):
    """What a norm does, counted by hand.

    Attributes:
        sharers: How many values of a tensor (N, H, W, C) = (3, 2, 3, 8) share statistics, in two
            groups where there are groups.
        is_over_batch: Whether images share statistics, and inference uses moving ones.
        survives_one_pixel: Whether the output for one image of one pixel depends on it.
    """

    sharers: int
    is_over_batch: bool = False
    survives_one_pixel: bool = True


EXPECTED = {
    "bn": Expected(18, is_over_batch=True, survives_one_pixel=False),
    "gn": Expected(24),
    "ln": Expected(48),
    "lnc": Expected(8),
    "in": Expected(6, survives_one_pixel=False),
    "rms": Expected(8),
}


def shared_by_definition(norm, index, groups=2):
    """Returns which values of the definition change when its input at `index` does."""
    x = np.random.Generator(np.random.PCG64(0)).normal(size=CUBE)
    moved = x.copy()
    moved[index] += 1.0
    return np.abs(normalize(moved, norm, groups) - normalize(x, norm, groups)) > 1e-9


def test_every_norm_but_none_is_explained():
    assert {*EXPLAINED} == {*EXPECTED} == {*NORMS} - {"none"}


@pytest.mark.parametrize("norm", EXPLAINED)
@pytest.mark.parametrize("index", PLACES)
def test_the_outputs_that_move_are_those_of_the_definition(norm, index):
    moved = shared_by_perturbation(norm, CUBE, index)
    assert np.array_equal(moved, shared_by_definition(norm, index))
    assert moved.sum() == EXPECTED[norm].sharers
    assert moved[index]


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_the_groups_of_gn_reach_from_ln_to_in(groups):
    moved = shared_by_perturbation("gn", CUBE, PLACES[1], groups)
    assert np.array_equal(moved, shared_by_definition("gn", PLACES[1], groups))
    twin = {1: "ln", 8: "in"}.get(groups)
    assert twin is None or np.array_equal(moved, shared_by_definition(twin, PLACES[1]))


@pytest.mark.parametrize("norm", EXPLAINED)
def test_the_last_step_of_the_example_is_the_layers_output(norm):
    worked = worked_example(norm)
    assert np.allclose(worked.training[-1].values, worked.layer_training, atol=1e-4)
    assert np.allclose(worked.inference[-1].values, worked.layer_inference, atol=1e-4)
    is_batch = EXPECTED[norm].is_over_batch
    assert is_batch != np.allclose(worked.layer_training, worked.layer_inference)
    assert len(worked.moving) == (4 if is_batch else 0)


def test_rms_shows_no_mean_and_no_shift():
    names = [step.name for step in worked_example("rms").training]
    assert names == ["input", "mean square", "normalized", "scaled"]


def test_a_wrong_definition_does_not_pass(monkeypatch):
    monkeypatch.setitem(NORMS, "ln", dataclasses.replace(NORMS["ln"], axes=(1, 2)))
    with pytest.raises(ConfigError, match="definition"):
        worked_example("ln")


def test_moving_statistics_of_another_shape_or_without_momentum_are_named(monkeypatch):
    def explained(*options):
        layer = lambda config, channels, **common: Averaging(*options)  # noqa: E731
        monkeypatch.setitem(NORMS, "bn", dataclasses.replace(NORMS["bn"], layer=layer))
        return worked_example("bn")

    assert explained((4,)).momentum == 0.9
    with pytest.raises(ConfigError, match=r"'moving_mean' of shape \(4,\).*moving_mean \(\)"):
        explained(())
    with pytest.raises(ConfigError, match="attribute 'momentum'"):
        explained((4,), None)


def test_a_variable_that_the_record_names_and_the_layer_lacks_is_named(monkeypatch):
    monkeypatch.setitem(NORMS, "lnc", dataclasses.replace(NORMS["lnc"], scale="weight"))
    with pytest.raises(ConfigError, match=r"variable 'weight' of shape \(4,\).*gamma \(4,\)"):
        worked_example("lnc")


@given(st.sampled_from(EXPLAINED), st.integers(0, 2**32 - 1))
def test_normalized_values_that_share_statistics_have_mean_0_and_variance_1(norm, seed):
    x = np.random.Generator(np.random.PCG64(seed)).normal(3, 2, CUBE)
    same = normalize(x, norm, 2, epsilon=0)[shared_by_definition(norm, PLACES[1])]
    assert np.isclose(np.square(same).mean(), 1)
    assert not NORMS[norm].is_centered or abs(same.mean()) < 1e-9


@pytest.mark.parametrize("norm", EXPLAINED)
def test_an_image_alone_depends_on_the_others_and_on_its_pixel_as_expected(norm):
    found = batch_of_one(norm)
    assert (found.training_change > 0) == EXPECTED[norm].is_over_batch
    assert found.inference_change == 0
    assert found.survives_one_pixel == EXPECTED[norm].survives_one_pixel


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match="Did you mean gn"):
        normalize(np.zeros(CUBE), "gnn")
    with pytest.raises(ConfigError, match="divisor of 8"):
        normalize(np.zeros(CUBE), "gn", groups=3)


SELDOM_TRIED = pytest.mark.long, pytest.mark.backend("any", slow_on="tensorflow")


@pytest.mark.parametrize(
    "norm", [pytest.param(n, marks=() if n in ("bn", "gn") else SELDOM_TRIED) for n in EXPLAINED]
)
@pytest.mark.backend("any", long_on="tensorflow")
def test_an_explanation_has_text_numbers_and_a_figure(norm, tmp_path):
    has_cost = norm == "bn"
    answer = explain(norm, cost=has_cost, batch_size=4, rounds=1)
    text = explanation_text(answer.data)
    assert NORMS[norm].facts.formula in text
    assert ("parameters" in text) == has_cost
    assert ("Moving average" in text) == EXPECTED[norm].is_over_batch
    document = json.loads(json.dumps(answer.document(), allow_nan=False))
    assert np.sum(document["shared"]) == EXPECTED[norm].sharers
    if has_cost:
        assert document["cost"]["norm_parameters"] == 1008  # 252 channels of gamma, beta, moving
        assert document["cost"]["least"] <= document["cost"]["share"] <= document["cost"]["largest"]
        assert document["cost"]["largest"] < 1
    (path,) = answer.save(tmp_path)
    assert path.read_bytes().startswith(b"\x89PNG")


OWN = """
import keras
from keras import ops

class OverRows(keras.layers.Layer):
    def call(self, x):
        return x - ops.mean(x, axis=1, keepdims=True)

class Halved(keras.layers.Layer):
    def call(self, x):
        return x / 2

def pairs(channels, name):
    return keras.layers.GroupNormalization(channels // 2, name=name)

class Moving(keras.layers.Layer):
    def build(self, shape):
        self.moving = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x, training=False):
        y = x - ops.mean(x, axis=(1, 2), keepdims=True) - self.moving
        if training:
            self.moving.assign(self.moving + ops.mean(x))
        return y

class Cut(keras.layers.Layer):
    def call(self, x):
        return ops.maximum(x * ops.rsqrt(ops.mean(x * x, axis=(1, 2), keepdims=True) + 1e-6), 0.5)

def batch(channels, name):
    return keras.layers.BatchNormalization(name=name)

def dark_batch(channels, name):
    return keras.layers.BatchNormalization(gamma_initializer="zeros", name=name)

def dark_pairs(channels, name):
    return keras.layers.GroupNormalization(channels // 2, gamma_initializer="zeros", name=name)
"""


@pytest.mark.parametrize(
    ("name", "over"),
    [
        ("OverRows", "H (found"),
        ("Halved", "nothing: each value alone"),
        ("pairs", "H, W, 2 of 8 channels (found"),
        ("batch", "N, H, W (found"),
        ("Moving", "H, W (found"),
        ("dark_batch", "N, H, W (found"),
        ("dark_pairs", "H, W, 2 of 8 channels (found"),
        ("Cut", "H, W (found"),
    ],
)
@pytest.mark.backend("any", long_on="tensorflow")
def test_what_shares_statistics_in_a_norm_of_the_user_is_found(tmp_path, name, over):
    path = tmp_path / "own.py"
    path.write_text(OWN)
    answer = explain(f"{path}:{name}", cost=False)
    assert answer.data.facts.over.startswith(over)
    text = explanation_text(answer.data)
    assert f"over {over}" in text
    if name == "Halved":
        first, second = (step.values for step in answer.data.worked.training)
        np.testing.assert_array_equal(second, first / 2)
        assert answer.data.batch_of_one.training_change == 0
    if name == "dark_batch":  # with its initial scale of 0
        assert not answer.data.worked.training[-1].values.any()
    if name in ("batch", "dark_batch"):
        assert answer.data.batch_of_one.training_change > 0.1


RECORDS = """
import keras
from kerasnorm.norms import Norm, NormFacts

def facts(name):
    return NormFacts(name=name, over="H, W", formula=f"the formula of {name}", source="a paper")

class Centered(keras.layers.Layer):
    def call(self, x):
        return x - keras.ops.mean(x, axis=(1, 2), keepdims=True)

def instance(config, channels, **common):
    return keras.layers.GroupNormalization(channels, epsilon=1e-5, **common)

OBSERVED = Norm(
    name="mine",
    layer=lambda config, channels, **common: Centered(**common),
    color="#123456",
    facts=facts("mean alone"),
)
DEFINED = Norm(
    name="own",
    layer=instance,
    color="#654321",
    groups=lambda config, channels: channels,
    axes=(1, 2, 4),
    facts=facts("instances"),
)
WRONG = Norm(name="wrong", layer=instance, color="#000000", axes=(4,), facts=facts("nothing"))
"""


def test_a_record_of_the_user_gives_its_facts_and_color_and_is_checked_where_it_has_axes(tmp_path):
    path = tmp_path / "records.py"
    path.write_text(RECORDS)
    name = f"{path}:OBSERVED"
    assert NORMS[name].color != "#123456"  # its code was not run yet
    answer = explain(name, cost=False)
    assert NORMS[name].color == "#123456"
    assert answer.data.shared.sum() == 6
    assert [step.name for step in answer.data.worked.training] == ["input", "output"]
    text = explanation_text(answer.data)
    assert "the formula of mean alone" in text
    assert "initial values" in text
    answer = explain(f"{path}:DEFINED", cost=False)
    assert [step.name for step in answer.data.worked.training][1:3] == ["mean", "variance"]
    with pytest.raises(ConfigError, match="definition in the norm's record"):
        explain(f"{path}:WRONG", cost=False)


SPATIAL = """
import math
import keras
from keras import ops


class Base(keras.layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape=self.of(shape), initializer="ones", name="scale")

    def call(self, x):
        mean = ops.mean(x, axis=self.axes, keepdims=True)
        variance = ops.var(x, axis=self.axes, keepdims=True)
        y = (x - mean) * ops.rsqrt(variance + 1e-5)
        return y * ops.reshape(self.scale, (-1, *x.shape[1:])) if self.is_all else y * self.scale


class Element(Base):
    axes, is_all = (1, 2, 3), True
    of = staticmethod(lambda shape: shape[1:])


class Flat(Base):
    axes, is_all = (1, 2), True
    of = staticmethod(lambda shape: (math.prod(shape[1:]),))


class Rows(Base):
    axes, is_all = (2, 3), False
    of = staticmethod(lambda shape: (shape[1], 1, 1))
"""


@pytest.mark.parametrize(
    ("name", "over"), [("Element", "H, W, C"), ("Flat", "H, W"), ("Rows", "W, C")]
)
@pytest.mark.backend("any", long_on="tensorflow")
def test_a_norm_whose_weights_depend_on_the_size_of_the_map_is_explained(tmp_path, name, over):
    path = tmp_path / "spatial_norms.py"
    path.write_text(SPATIAL)
    found = explain(f"{path}:{name}", cost=False)
    assert f"over {over} (found by perturbation)" in explanation_text(found.data)
    # On one image of one pixel, only channels can share a mean.
    assert found.data.batch_of_one.survives_one_pixel == (name != "Flat")
