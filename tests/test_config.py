"""The config: recipes, overrides, checks, TOML and hash."""

import dataclasses
import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerasnorm.config import RECIPES, SECTIONS, SETTINGS, UNCOMPARED, resolve, to_toml
from kerasnorm.errors import ConfigError
from kerasnorm.norms import NORMS


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("norm", NORMS)
def test_a_config_survives_toml(recipe, norm):
    config = resolve({"recipe": recipe, "norm": norm})
    assert resolve(document=tomllib.loads(to_toml(config))) == config


def test_every_field_has_one_name_and_help():
    fields = [dataclasses.fields(section) for section in SECTIONS.values()]
    assert len(SETTINGS) == sum(map(len, fields))
    assert all(setting.field.metadata["help"].endswith(".") for setting in SETTINGS.values())


def test_overrides_beat_the_file_which_beats_the_recipe():
    document = {"recipe": "era8", "train": {"epochs": 7, "seed": 3}}
    config = resolve({"seed": 9}, document)
    assert (config.train.seed, config.train.epochs, config.train.batch_size) == (9, 7, 64)


def test_a_recipe_carries_values_for_one_norm_only():
    assert resolve({"norm": "gn"}).model.weight_standardization
    assert not resolve({"norm": "bn"}).model.weight_standardization
    chosen = resolve({"norm": "gn", "weight_standardization": False})
    assert not chosen.model.weight_standardization


def test_era8_is_the_published_recipe():
    config = resolve({"recipe": "era8"})
    assert config.model.widths == (16, 16, 10, 32, 32, 32, 20, 32, 32, 32)
    assert config.model.order == "conv-act-norm"
    assert (config.model.dropout, config.model.residual) == (0.01, False)
    assert (config.train.optimizer, config.train.schedule) == ("adam", "onecycle")
    assert (config.train.batch_size, config.train.epochs) == (64, 20)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ({"norm": "batch"}, "one of bn, gn"),
        ({"recipe": "bets"}, "best"),
        ({"nrom": "bn"}, "Did you mean norm"),
        ({"epochs": -1}, "Received: epochs=-1"),
        ({"epochs": 2.5}, "whole number"),
        ({"epochs": True}, "whole number"),
        ({"epochs": "3"}, "whole number"),
        ({"dropout": float("nan")}, "dropout"),
        ({"learning_rate": float("inf")}, "learning_rate"),
        ({"widths": [16, 16]}, "10 numbers"),
        ({"widths": 16}, "list"),
        ({"widths": [0] * 10}, "at least 1"),
        ({"image_size": [32, 32, 3]}, "image_size: expected a height and a width"),
        ({"image_size": [0, 8]}, "image_size: .*at least 1"),
        ({"image_size": [8], "resize": "fill"}, "stretch, crop, pad"),
        ({"resize": "crop"}, "Give --image-size H,W too"),
        ({"residual": 1}, "true or false"),
        ({"device": "cuda"}, "cuda:1"),
        ({"device": "gpu:x"}, "device"),
        ({"optimizer": "adam", "weight_decay": 0.1}, "adamw"),
        ({"data": 3}, "text"),
        ({"epochs": 10**400}, "epochs"),
        ({"learning_rate": 10**400}, "learning_rate"),
        ({"device": "cuda:²"}, "cuda:1"),
        ({"recipe": 3}, "recipe"),
        ({"recipe": []}, "recipe"),
        ({"log": "wandb"}, "a list of tensorboard, mlflow. Received: log='wandb'"),
        ({"log": ["mlflow", []]}, "a list of tensorboard, mlflow"),
        ({"log": True}, "a list of tensorboard, mlflow"),
        ({"norm": resolve}, "of your code. Received: norm=kerasnorm.config:resolve$"),
        ({"optimizer": object()}, "text. Received: optimizer=<object object>$"),
    ],
)
def test_bad_values_are_refused_by_name(override, named):
    with pytest.raises(ConfigError, match=named):
        resolve(override)


@pytest.mark.parametrize(
    "document",
    [
        {"train": {"norm": "bn"}},
        {"training": {}},
        {"train": 3},
        {"model": {"nonsense": 1}},
        {"recipe": "none"},
    ],
)
def test_bad_documents_are_refused(document):
    with pytest.raises(ConfigError):
        resolve(document=document)


@given(
    st.sampled_from(sorted(SETTINGS)),
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.text())),
)
def test_any_value_gives_a_config_or_a_config_error(name, value):
    try:
        config = resolve({name: value})
    except ConfigError:
        return
    assert resolve(document=tomllib.loads(to_toml(config))) == config


@given(st.sampled_from(["seed", "epochs", "batch_size"]), st.integers(1, 1000))
def test_the_hash_changes_with_the_config_and_only_then(name, value):
    base = resolve()
    changed = base.replace(**{name: value})
    assert (changed.hash() == base.hash()) == (changed == base)


# Of each kind of field: what programs pass, by the value that it stands for.
LIKE = {
    bool: lambda value: [np.bool_(value)],
    int: lambda value: [np.int64(value), np.int32(value), np.float64(value), np.array(value)],
    float: lambda value: [np.float64(value), np.array(value)],
    str: lambda value: [np.str_(value), Path(value)],
    tuple: lambda value: [list(value), np.array(value, np.int32 if value else str)],
}


@pytest.mark.parametrize("name", SETTINGS)
def test_values_of_numpy_and_paths_are_written_as_plain_ones(name):
    base = {"norm": "gn"}
    value = resolve(base).fields[name]
    config = resolve(base | {name: value})
    for like in LIKE[type(value)](value):
        found = resolve(base | {name: like})
        assert type(found.fields[name]) is type(value), repr(like)
        assert to_toml(found) == to_toml(config), repr(like)
        assert config.replace(**{name: like}) == config, repr(like)


def test_a_number_of_single_precision_is_taken_as_it_is():
    config = resolve({"learning_rate": np.float32(0.1), "widths": tuple(np.arange(1, 11))})
    assert "learning_rate = 0.10000000149011612\n" in to_toml(config)
    assert config.model.widths == resolve({"widths": range(1, 11)}).model.widths == (*range(1, 11),)
    assert {*map(type, config.model.widths)} == {int}
    for wrong in (np.float32("nan"), np.array([0.1]), np.bool_(True), np.complex64(1)):
        with pytest.raises(ConfigError, match="learning_rate: expected a number"):
            resolve({"learning_rate": wrong})


def test_a_recipe_cannot_contradict_the_file():
    document = resolve({"recipe": "era8"}).to_dict()
    assert resolve({"recipe": "era8"}, document) == resolve(document=document)
    with pytest.raises(ConfigError, match="recipe='best'"):
        resolve({"recipe": "best"}, document)


def test_adam_alone_has_no_decay():
    assert resolve({"optimizer": "adam"}).train.weight_decay == 0


def test_a_group_size_is_not_silenced_by_the_recipes_group_count():
    assert resolve({"norm": "gn"}).model.groups == 2
    assert resolve({"norm": "gn", "group_size": 4}).model.groups == 0
    assert resolve({"norm": "gn", "group_size": 4, "groups": 2}).model.groups == 2


def test_nor_by_a_files_group_count():
    written = resolve({"norm": "gn"}).to_dict()
    assert resolve({"group_size": 4}, written).model.groups == 0
    assert resolve({"group_size": 4, "groups": 8}, written).model.groups == 8
    assert resolve({}, written).model.groups == 2


@pytest.mark.parametrize("field", [{"device": "cpu"}, {"devices": 2}, {"log": ["mlflow"]}])
def test_a_field_that_changes_no_number_does_not_change_the_hash(field):
    assert resolve(field).hash() == resolve().hash()
    assert {*field} <= {*UNCOMPARED}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_fields_of_a_config_make_it_again(recipe):
    config = resolve({"recipe": recipe, "norm": "ln", "seed": 3, "log": ["mlflow"]})
    assert resolve(config.fields) == resolve(json.loads(json.dumps(config.fields))) == config
    assert config.fields.keys() == {"recipe", *SETTINGS}


def test_loggers_are_a_list_and_one_may_be_given_alone():
    assert resolve({"log": "mlflow"}).train.log == ("mlflow",)
    assert resolve({"log": ["tensorboard", "mlflow", "tensorboard"]}).train.log == (
        "tensorboard",
        "mlflow",
    )
    document = resolve().to_dict()
    del document["train"]["log"]  # a config of an earlier version
    assert resolve(document=document).train.log == ()


def test_a_renamed_field_is_read_from_files_and_named_to_callers():
    old = {"recipe": "best", "data": {"treatment": "scale"}}
    assert resolve(document=old).data.preprocessing == "scale"
    with pytest.raises(ConfigError, match="now called preprocessing"):
        resolve({"treatment": "scale"})


def test_one_number_is_height_and_width():
    assert resolve({"image_size": [8]}).data.image_size == (8, 8)


def test_a_config_without_new_fields_keeps_its_hash():
    """Checkpoints of version 0.1.0 hold this hash of the defaults."""
    assert resolve().hash() == "3c3cd7e92be7"
    changed = {resolve({"image_size": [8], "resize": how}).hash() for how in ("pad", "crop")}
    assert len(changed | {resolve().hash()}) == 3
