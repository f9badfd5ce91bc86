"""One record adds a norm to everything: filter response normalization, which the package lacks.

Source: Singh & Krishnan, "Filter Response Normalization Layer", arXiv 1911.09737.
"""

import json
from dataclasses import replace

import keras
import numpy as np
import pytest
from helpers import tiny
from helpers.coarse import coarse_figures  # noqa: F401
from keras import ops

from kerasnorm.analysis.landscape import landscape
from kerasnorm.analysis.norm import (
    CUBE,
    explain,
    explanation_text,
    normalize,
    shared_by_perturbation,
    worked_example,
)
from kerasnorm.analysis.statistics import statistics
from kerasnorm.config import resolve
from kerasnorm.errors import ConfigError, KerasnormError
from kerasnorm.formats import state_dict
from kerasnorm.formats.archive import open_model
from kerasnorm.formats.export import Exporter
from kerasnorm.inspection.layers import layer_table, receptive_field
from kerasnorm.network import build_model
from kerasnorm.norms import EPSILON, NORMS, FinalStep, Norm, NormFacts, normalization, register
from kerasnorm.plots.curves import accuracy_figure
from kerasnorm.study import study as studies
from kerasnorm.study.plan import StudyPlan
from kerasnorm.training.fit import fit, make_engine

pytestmark = pytest.mark.backend("any")


@keras.saving.register_keras_serializable(package="tests")
class FilterResponseNormalization(keras.layers.Layer):
    """y = max(gamma * x / sqrt(mean(x^2 over H, W) + epsilon) + beta, tau)."""

    def build(self, shape):
        self.gamma = self.add_weight(shape=(shape[-1],), initializer="ones", name="gamma")
        self.beta = self.add_weight(shape=(shape[-1],), initializer="zeros", name="beta")
        self.tau = self.add_weight(shape=(shape[-1],), initializer="zeros", name="tau")

    def call(self, x):
        mean_square = ops.mean(ops.square(x), axis=(1, 2), keepdims=True)
        scaled = self.gamma * x * ops.rsqrt(mean_square + EPSILON) + self.beta
        return ops.maximum(scaled, self.tau)


FRN = Norm(
    name="frn",
    layer=lambda config, channels, **common: FilterResponseNormalization(**common),
    color="#F0E442",
    groups=lambda config, channels: channels,
    axes=(1, 2, 4),
    is_centered=False,
    final=FinalStep("thresholded", "tau", np.maximum, neutral=-1e9),
    facts=NormFacts(
        name="Filter Response Normalization",
        over="H, W, no mean: one mean square per image and channel",
        formula="y = max(gamma * x / sqrt(mean(x^2) + epsilon) + beta, tau)",
        source="Singh & Krishnan 2019, arXiv 1911.09737",
    ),
)


@pytest.fixture(scope="module", autouse=True)
def frn():
    """Registers the norm for the tests of this module."""
    register(FRN)
    yield
    del NORMS["frn"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs with the new norm and with batch normalization, trained by the native engine."""
    folder = tmp_path_factory.mktemp("runs")
    return [fit(tiny.config(norm=norm, epochs=1), out=folder / norm) for norm in ("frn", "bn")]


@pytest.mark.parametrize("color", ["red-ish", "#F0E", "#F0E44", "#F0E4422", "0072B2", "", None, 3])
def test_a_color_that_figures_cannot_show_is_refused_at_once(color):
    with pytest.raises(ConfigError, match=r"^color: expected text such as #0072B2\. Received: "):
        replace(FRN, color=color)


def test_its_layer_computes_the_definition():
    x = np.random.default_rng(0).normal(1, 2, (3, 4, 5, 6))
    gamma, beta, tau = np.random.default_rng(1).normal(size=(3, 6))
    layer = normalization(resolve({"norm": "frn"}).model, 6)
    layer.build(x.shape)
    layer.set_weights([gamma, beta, tau])
    normal = x / np.sqrt((x**2).mean((1, 2), keepdims=True) + 1e-5)
    np.testing.assert_allclose(normalize(x, "frn"), normal, rtol=1e-12)
    found = ops.convert_to_numpy(layer(x.astype(np.float32)))
    np.testing.assert_allclose(found, np.maximum(gamma * normal + beta, tau), rtol=1e-4, atol=1e-5)


def test_the_network_has_it_with_shapes_parameters_and_fields():
    model, twin = (build_model(norm, widths=tiny.WIDTHS) for norm in ("frn", "bn"))
    norms = [layer for layer in model.layers if isinstance(layer, FilterResponseNormalization)]
    assert len(norms) == 10
    rows = layer_table(model)
    assert [row.parameters for row in rows if row.type == "FilterResponseNormalization"] == [
        12
    ] * 10
    fields = [
        [(row.name, row.receptive_field) for row in receptive_field(m)] for m in (model, twin)
    ]
    assert fields[0] == fields[1]


def test_the_native_engine_trains_it_as_keras_does():
    data = tiny.dataset()
    native, reference = (
        make_engine(tiny.config(norm="frn", engine=engine, optimizer="sgd"), data)
        for engine in ("native", "keras")
    )
    tiny.assert_same_epoch(native, reference)


@pytest.mark.backend("any", long_on="tensorflow")
def test_a_run_with_it_is_saved_opened_and_drawn(runs):
    run = runs[0]
    model = run.model()
    taus = [v for v in model.trainable_variables if v.name == "tau"]
    assert len(taus) == 10
    assert any(np.abs(ops.convert_to_numpy(tau)).max() > 0 for tau in taus)
    accuracy_figure(runs)


@pytest.mark.backend("any", long_on="tensorflow")
def test_it_is_explained(tmp_path):
    index = (1, 1, 2, 5)
    moved = shared_by_perturbation("frn", CUBE, index)
    assert moved.sum() == 6
    assert moved[1, :, :, 5].all()  # the pixels of one channel of one image
    worked = worked_example("frn")
    names = [step.name for step in worked.training]
    assert names == ["input", "mean square", "normalized", "scaled and shifted", "thresholded"]
    np.testing.assert_allclose(worked.training[-1].values, worked.layer_training, atol=1e-4)
    answer = explain("frn", batch_size=4, rounds=1)
    text = explanation_text(answer.data)
    assert FRN.facts.formula in text
    assert "tau" in text
    assert "756 of" in text  # parameters: 252 channels of gamma, beta and tau
    json.dumps(answer.document(), allow_nan=False)
    (path,) = answer.save(tmp_path)
    assert path.name == "frn.png"


def test_a_wrong_record_does_not_pass(monkeypatch):
    monkeypatch.setitem(NORMS, "frn", replace(FRN, is_centered=True))
    with pytest.raises(ConfigError, match="definition"):
        worked_example("frn")


@pytest.mark.long
@pytest.mark.backend("any", slow_on="tensorflow")
def test_statistics_and_landscape_measure_it(runs):
    found = statistics(runs, train_size=32, epochs=1, images=8)
    assert [one.norm for one in found.data] == ["frn", "bn"]
    found = landscape(runs, steps=2, lines=1, points=3, images=8)
    assert all(np.isfinite(one.surface.plane).all() for one in found.data)


@pytest.mark.long
@pytest.mark.backend("any", long_on="tensorflow")
def test_a_report_compares_it_and_a_study_says_why_it_cannot(runs, tmp_path):
    target = tmp_path / "report.html"
    studies.report_on_runs(runs, target)
    assert "FRN" in target.read_text(encoding="utf-8")
    backend = keras.backend.backend()
    study = StudyPlan(
        norms=("frn", "bn"), backends=(backend,), seeds=(0,), fixed={"data": "shapes"}
    )
    with pytest.raises(ConfigError, match="'frn', registered in this process only"):
        studies.check(study)


@pytest.mark.backend("any", long_on="tensorflow")
def test_a_state_dict_refuses_its_layer(runs, tmp_path):
    with pytest.raises(ConfigError, match="type FilterResponseNormalization cannot be written"):
        state_dict.write(runs[0].path / "model.keras", tmp_path / "model.safetensors")


@pytest.mark.backend("any", slow_on="tensorflow")
@pytest.mark.long
def test_an_export_in_another_process_refuses_its_layer(runs, tmp_path):
    with (
        Exporter(open_model(runs[0].path), tmp_path, None) as exporter,
        pytest.raises(KerasnormError, match="FilterResponseNormalization"),
    ):
        exporter.export("keras")


def test_the_hand_written_loop_refuses_it():
    pytest.importorskip("torch")
    if keras.backend.backend() != "torch":
        pytest.skip("needs the torch backend")
    from kerasnorm.benchmark.plain import network

    with pytest.raises(ConfigError, match="norm='frn'"):
        network(tiny.config(norm="frn").model, 3, 10)


def test_a_name_is_taken_once():
    with pytest.raises(ConfigError, match="not taken"):
        register(FRN)
