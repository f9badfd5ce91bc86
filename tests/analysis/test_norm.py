"""Each norm is what its definition says, on the backend that runs."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerasnorm.analysis.norm import (
    CUBE,
    batch_of_one,
    explain,
    explanation_text,
    normalize,
    shared_by_definition,
    shared_by_perturbation,
    worked_example,
)
from kerasnorm.errors import ConfigError
from kerasnorm.norms import NORMS

pytestmark = pytest.mark.backend("any")

EXPLAINED = tuple(name for name, norm in NORMS.items() if norm.facts)
PLACES = [(0, 0, 0, 0), (1, 1, 2, 5), (2, 0, 1, 7)]
# Of a tensor (N, H, W, C) = (3, 2, 3, 8), in two groups where there are groups.
SHARERS = {"bn": 18, "gn": 24, "ln": 48, "lnc": 8, "in": 6, "rms": 8}


def test_every_norm_but_none_is_explained():
    assert {*EXPLAINED} == {*SHARERS} == {*NORMS} - {"none"}


@pytest.mark.parametrize("norm", EXPLAINED)
@pytest.mark.parametrize("index", PLACES)
def test_the_outputs_that_move_are_those_of_the_definition(norm, index):
    moved = shared_by_perturbation(norm, CUBE, index)
    assert np.array_equal(moved, shared_by_definition(norm, CUBE, index))
    assert moved.sum() == SHARERS[norm]
    assert moved[index]


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_the_groups_of_gn_reach_from_ln_to_in(groups):
    moved = shared_by_perturbation("gn", CUBE, PLACES[1], groups)
    assert np.array_equal(moved, shared_by_definition("gn", CUBE, PLACES[1], groups))
    twin = {1: "ln", 8: "in"}.get(groups)
    assert twin is None or np.array_equal(moved, shared_by_definition(twin, CUBE, PLACES[1]))


@pytest.mark.parametrize("norm", EXPLAINED)
def test_the_last_step_of_the_example_is_the_layers_output(norm):
    worked = worked_example(norm)
    assert np.allclose(worked.training[-1].values, worked.layer_training, atol=1e-4)
    assert np.allclose(worked.inference[-1].values, worked.layer_inference, atol=1e-4)
    is_batch = norm == "bn"
    assert is_batch != np.allclose(worked.layer_training, worked.layer_inference)
    assert len(worked.moving) == (4 if is_batch else 0)


def test_rms_shows_no_mean_and_no_shift():
    names = [step.name for step in worked_example("rms").training]
    assert names == ["input", "mean square", "normalized", "scaled"]


def test_a_wrong_definition_does_not_pass(monkeypatch):
    monkeypatch.setitem(NORMS, "ln", dataclasses.replace(NORMS["ln"], axes=(1, 2)))
    with pytest.raises(AssertionError, match="definition"):
        worked_example("ln")


@given(st.sampled_from(EXPLAINED), st.integers(0, 2**32 - 1))
def test_normalized_values_that_share_statistics_have_mean_0_and_variance_1(norm, seed):
    x = np.random.Generator(np.random.PCG64(seed)).normal(3, 2, CUBE)
    same = normalize(x, norm, 2, epsilon=0)[shared_by_definition(norm, CUBE, PLACES[1])]
    assert np.isclose(np.square(same).mean(), 1)
    assert norm == "rms" or abs(same.mean()) < 1e-9


def test_only_bn_asks_the_other_images_and_two_norms_lose_a_lone_pixel():
    found = {norm: batch_of_one(norm) for norm in EXPLAINED}
    assert [norm for norm in EXPLAINED if found[norm].training_change > 0] == ["bn"]
    assert all(one.inference_change == 0 for one in found.values())
    assert {norm for norm in EXPLAINED if not found[norm].survives_one_pixel} == {"bn", "in"}


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match="Did you mean gn"):
        shared_by_definition("gnn", CUBE, PLACES[0])
    with pytest.raises(ConfigError, match="divisor of 8"):
        normalize(np.zeros(CUBE), "gn", groups=3)


@pytest.mark.parametrize("norm", EXPLAINED)
def test_an_explanation_has_text_numbers_and_a_figure(norm, tmp_path):
    has_cost = norm == "bn"
    answer = explain(norm, cost=has_cost, batch_size=4, rounds=1)
    text = explanation_text(answer.data)
    assert NORMS[norm].facts.formula in text
    assert ("parameters" in text) == has_cost
    assert ("Moving average" in text) == (norm == "bn")
    document = json.loads(json.dumps(answer.document(), allow_nan=False))
    assert np.sum(document["shared"]) == SHARERS[norm]
    if has_cost:
        assert document["cost"]["norm_parameters"] == 1008  # 252 channels of gamma, beta, moving
        assert document["cost"]["share"] < 1
    (path,) = answer.save(tmp_path)
    assert path.read_bytes().startswith(b"\x89PNG")
