"""The public functions refuse arguments of a wrong type with an error that says what to do."""

import json

import keras
import numpy as np
import pytest
from helpers import tiny

import kerasnorm
from kerasnorm.errors import KerasnormError

X = np.zeros((2, 4, 4, 4), np.float32)
IMAGES = np.zeros((4, 8, 8, 3), np.uint8)
NOWHERE = {"data": "no such data"}


def model():
    return keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization()]
    )


def study(folder, **options):
    return kerasnorm.compare(**{"norms": ("gn",), **NOWHERE, "out": folder / "study"} | options)


# Of each argument: a call with it, which receives a folder too.
CALLS = {
    "explain norm": lambda v, _: kerasnorm.explain(v, cost=False),
    "explain batch_size": lambda v, _: kerasnorm.explain("gn", cost=False, batch_size=v),
    "explain rounds": lambda v, _: kerasnorm.explain("gn", cost=False, rounds=v),
    "normalize x": lambda v, _: kerasnorm.normalize(v, "gn"),
    "normalize norm": lambda v, _: kerasnorm.normalize(X, v),
    "normalize groups": lambda v, _: kerasnorm.normalize(X, "gn", groups=v),
    "normalize epsilon": lambda v, _: kerasnorm.normalize(X, "gn", epsilon=v),
    "convert_norm model": lambda v, _: kerasnorm.convert_norm(v, "gn"),
    "convert_norm norm": lambda v, _: kerasnorm.convert_norm(model(), v),
    "convert_norm groups": lambda v, _: kerasnorm.convert_norm(model(), "gn", groups=v),
    "convert_norm group_size": lambda v, _: kerasnorm.convert_norm(model(), "gn", group_size=v),
    "fold_norms model": lambda v, _: kerasnorm.fold_norms(v),
    "fold_norms rounds": lambda v, _: kerasnorm.fold_norms(model(), rounds=v),
    "recalibrate model": lambda v, _: kerasnorm.recalibrate(v, IMAGES),
    "recalibrate images": lambda v, _: kerasnorm.recalibrate(model(), v),
    "recalibrate batch_size": lambda v, _: kerasnorm.recalibrate(model(), IMAGES, batch_size=v),
    "layer_table model": lambda v, _: kerasnorm.layer_table(v),
    "receptive_field model": lambda v, _: kerasnorm.receptive_field(v),
    "portable model": lambda v, _: kerasnorm.portable(v),
    "load_model path": lambda v, _: kerasnorm.load_model(v),
    "build_model norm": lambda v, _: kerasnorm.build_model(v),
    "build_model recipe": lambda v, _: kerasnorm.build_model("bn", v),
    "build_model input_shape": lambda v, _: kerasnorm.build_model("bn", input_shape=v),
    "build_model classes": lambda v, _: kerasnorm.build_model("bn", classes=v),
    "build_model outputs": lambda v, _: kerasnorm.build_model("bn", outputs=v),
    "build_model mean": lambda v, _: kerasnorm.build_model("bn", mean=v),
    "build_model std": lambda v, _: kerasnorm.build_model("bn", std=v),
    "build_model precision": lambda v, _: kerasnorm.build_model("bn", precision=v),
    "build_model seed": lambda v, _: kerasnorm.build_model("bn", seed=v),
    "resolve overrides": lambda v, _: kerasnorm.resolve(v),
    "resolve document": lambda v, _: kerasnorm.resolve(document=v),
    "Run.load path": lambda v, _: kerasnorm.Run.load(v),
    "fit config": lambda v, _: kerasnorm.fit(v, **NOWHERE),
    "fit data": lambda v, folder: kerasnorm.fit(data=v, out=folder / "run"),
    "fit out": lambda v, _: kerasnorm.fit(out=v, **NOWHERE),
    "fit resume": lambda v, _: kerasnorm.fit(resume=v, **NOWHERE),
    "fit callbacks": lambda v, folder: tiny.train(tiny.config(), out=folder / "r", callbacks=v),
    "inputs config": lambda v, _: kerasnorm.inputs(v),
    "landscape runs": lambda v, _: kerasnorm.landscape(v),
    "landscape steps": lambda v, _: kerasnorm.landscape([], steps=v),
    "landscape points": lambda v, _: kerasnorm.landscape([], points=v),
    "landscape rate": lambda v, _: kerasnorm.landscape([], rate=v),
    "statistics runs": lambda v, _: kerasnorm.statistics(v),
    "statistics epochs": lambda v, _: kerasnorm.statistics([], epochs=v),
    "robustness models": lambda v, _: kerasnorm.robustness(v),
    "robustness images": lambda v, _: kerasnorm.robustness(["no model"], images=v),
    "robustness corruptions": lambda v, _: kerasnorm.robustness(["no model"], corruptions=v),
    "robustness severities": lambda v, _: kerasnorm.robustness(["no model"], severities=v),
    "compare norms": lambda v, folder: study(folder, norms=v),
    "compare backends": lambda v, folder: study(folder, backends=v),
    "compare seeds": lambda v, folder: study(folder, seeds=v),
    "compare vary": lambda v, folder: study(folder, vary=v),
    "compare arms": lambda v, folder: study(folder, arms=v),
    "compare margin": lambda v, folder: study(folder, margin=v),
    "compare jobs": lambda v, folder: study(folder, jobs=v),
    "compare out": lambda v, folder: study(folder, out=v),
}


@pytest.mark.parametrize(
    "value", [len, object(), b"x", [3], {"a": 1}], ids=lambda v: type(v).__name__
)
@pytest.mark.parametrize("argument", CALLS)
def test_a_wrong_type_is_refused(argument, value, tmp_path):
    with pytest.raises(KerasnormError) as caught:
        CALLS[argument](value, tmp_path)
    assert "0x" not in str(caught.value)


@pytest.mark.parametrize("name", ["explain norm", "normalize norm"])
def test_a_function_given_as_the_norm_is_named_with_what_is_expected(name, tmp_path):
    with pytest.raises(KerasnormError) as caught:
        CALLS[name](tiny.config, tmp_path)
    text = str(caught.value)
    assert text.startswith("norm: expected a name: ")
    assert "package.module:name" in text
    assert text.endswith("Received: norm=helpers.tiny:config")


@pytest.mark.parametrize("field", ["network", "norm"])
def test_a_function_given_as_a_field_is_answered_with_how_to_name_it(field):
    with pytest.raises(KerasnormError, match=f"^{field}: expected text, package.module:name or"):
        kerasnorm.fit(**{field: tiny.config}, **NOWHERE)


def test_arrays_and_tuples_of_numpys_numbers_are_taken():
    shape, mean = np.array([8, 8, 3]), np.full(3, 0.5, np.float32)
    built = kerasnorm.build_model("bn", input_shape=shape, classes=np.int64(4), mean=mean, std=mean)
    assert built.output_shape == (None, 4)
    options = {"dropout": np.float32(0.5), "residual": np.bool_(False), "widths": np.full(10, 8)}
    built = kerasnorm.build_model("gn", groups=np.int64(4), seed=np.int64(1), **options)
    plain = {"dropout": 0.5, "residual": False, "widths": (8,) * 10}
    like = kerasnorm.build_model("gn", groups=4, seed=1, **plain)
    assert built.to_json() == like.to_json()
    for options in ({"groups": np.int64(2)}, {"group_size": np.int32(2)}):
        config = kerasnorm.convert_norm(model(), "gn", **options).model.layers[-1].get_config()
        assert json.dumps(config["groups"]) == "2"
    found = kerasnorm.normalize([[[[1, 3]]]], "lnc", epsilon=np.float32(0))
    assert found.tolist() == [[[[-1, 1]]]]
