"""Corruptions against numbers worked out by hand, and what models make of them."""

import json
from pathlib import Path
from statistics import mean, stdev

import keras
import numpy as np
import pytest
from helpers import exported, studies, tiny
from helpers.command import call
from helpers.norm_nets import network, weights_by_path
from keras import layers
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv, to_hex
from matplotlib.figure import Figure
from PIL import Image

import kerasnorm
from kerasnorm.analysis import robustness
from kerasnorm.analysis.corruptions import CORRUPTIONS, SEVERITIES
from kerasnorm.analysis.robustness import (
    BATCH_PANEL,
    ModelRobustness,
    accuracies_in_batches,
    batches_of,
    entries_of_runs,
    loss_table,
    robustness_table,
)
from kerasnorm.data import stored
from kerasnorm.data.dataset import Split
from kerasnorm.data.preprocessing import equalize
from kerasnorm.data.shapes import shapes
from kerasnorm.errors import ConfigError
from kerasnorm.formats.archive import SavedModel, open_model
from kerasnorm.formats.exported import ExportedModel
from kerasnorm.norms import NORMS
from kerasnorm.plots.style import Picture
from kerasnorm.study.intervals import Interval

NAMES = ("contrast", "brightness")  # without those that are random or slow
NOISE = (0.04, 0.06, 0.08, 0.09, 0.1)
SIGMAS = (0.4, 0.6, 0.7, 0.8, 1.0)
EVERY_KIND = np.random.default_rng(0).integers(0, 256, (4, 9, 7, 3), dtype=np.uint8)


def corrupted(name, images, severity, seed=0):
    return CORRUPTIONS[name](np.array(images, np.uint8), severity, np.random.default_rng(seed))


@pytest.mark.parametrize("severity", SEVERITIES)
def test_contrast_is_worked_out_by_hand(severity):
    """Two images, of which each channel has a mean of its own."""
    images = [[[[0, 10], [200, 10]]], [[[100, 0], [100, 40]]]]
    low, high = {1: (25, 175), 2: (50, 150), 3: (60, 140), 4: (70, 130), 5: (85, 115)}[severity]
    dark, light = {1: (5, 35), 2: (10, 30), 3: (12, 28), 4: (14, 26), 5: (17, 23)}[severity]
    expected = [[[[low, 10], [high, 10]]], [[[100, dark], [100, light]]]]
    assert corrupted("contrast", images, severity).tolist() == expected


def test_brightness_is_worked_out_by_hand():
    gray = [corrupted("brightness", [[[[100]]]], severity).item() for severity in SEVERITIES]
    assert gray == [112, 125, 138, 151, 176]
    pixels = [[[[100, 50, 0], [0, 0, 0], [250, 125, 250]]]]
    # V is raised by 25.5, at most to 255: the other channels by the same factor.
    assert corrupted("brightness", pixels, 2).tolist() == [
        [[[125, 62, 0], [25, 25, 25], [255, 127, 255]]]
    ]


@pytest.mark.parametrize("severity", SEVERITIES)
def test_brightness_is_that_of_hsv(severity):
    colors = rgb_to_hsv(EVERY_KIND / 255)
    colors[..., 2] = np.minimum(colors[..., 2] + (0.05, 0.1, 0.15, 0.2, 0.3)[severity - 1], 1)
    expected = np.floor(255 * hsv_to_rgb(colors) + 1e-9)
    assert np.array_equal(corrupted("brightness", EVERY_KIND, severity), expected)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_blur_is_a_gaussian_cut_at_four_sigma(severity):
    sigma = SIGMAS[severity - 1]
    offsets = np.arange(-9, 10)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2) * (np.abs(offsets) <= round(4 * sigma))
    kernel /= kernel.sum()
    images = np.zeros((2, 19, 19, 2), np.uint8)
    images[0, 9, 9, 1] = 255  # one point of one channel of one image
    images[1, :, 0, 0] = 255  # an edge, which is repeated beyond the image
    expected = np.zeros(images.shape)
    expected[0, ..., 1] = 255 * np.outer(kernel, kernel)
    expected[1, ..., 0] = 255 * np.array([kernel[9 + place :].sum() for place in range(19)])
    assert np.array_equal(corrupted("gaussian-blur", images, severity), np.floor(expected + 1e-9))


@pytest.mark.parametrize("severity", SEVERITIES)
def test_noise_has_the_std_of_the_paper_and_stays_within_the_levels(severity):
    gray = np.full((2, 100, 100, 3), 128)
    noisy = corrupted("gaussian-noise", gray, severity).astype(float)
    assert np.isclose(noisy.std(), 255 * NOISE[severity - 1], rtol=0.02)
    assert np.isclose(noisy.mean(), 127.5, atol=0.5)  # fractions are dropped
    assert noisy[0, ..., 0].tolist() != noisy[1, ..., 0].tolist() != noisy[1, ..., 1].tolist()
    for level in (0, 255):  # half of the values would leave the levels
        kept = corrupted("gaussian-noise", np.full((1, 50, 50, 1), level), severity)
        assert 0.4 < (kept == level).mean() < 0.65
        assert np.abs(kept.astype(int) - level).max() < 6 * 255 * NOISE[severity - 1]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_chunks_do_not_show_and_images_are_left_alone(name, monkeypatch):
    before = EVERY_KIND.copy()
    whole = corrupted(name, EVERY_KIND, 3)
    monkeypatch.setattr(stored, "CHUNK", 1)
    assert np.array_equal(corrupted(name, EVERY_KIND, 3), whole)
    assert whole.dtype == np.uint8
    assert np.array_equal(EVERY_KIND, before)
    assert np.array_equal(corrupted(name, EVERY_KIND, 0), before)
    assert corrupted(name, EVERY_KIND[..., :1], 5).shape == (4, 9, 7, 1)


def test_batches_of_one_class_and_mixed_ones_hold_every_image_once():
    labels = np.array([0, 1, 1, 0, 2] * 30)
    found = batches_of(labels, seed=0)
    assert [len(part) for part in found["one_class"]] == [60, 60, 30]
    assert [len(part) for part in found["mixed"]] == [60, 60, 30]
    assert [np.unique(labels[part]).tolist() for part in found["one_class"]] == [[0], [1], [2]]
    assert all(len(np.unique(labels[part])) == 3 for part in found["mixed"])
    for parts in found.values():
        assert sorted(np.concatenate(parts)) == [*range(150)]
    other = batches_of(labels, seed=1)["mixed"]
    assert any((a != b).any() for a, b in zip(found["mixed"], other, strict=True))


def numbers(tensor):
    return keras.ops.convert_to_numpy(keras.ops.stop_gradient(tensor))


def varied():
    """A network of which batch statistics change the answers: its features are not averaged."""
    net, rng = network(), np.random.default_rng(5)
    logits = layers.Dense(5)(layers.Flatten()(net.get_layer("last_bn").output))
    model = keras.Model(net.input, logits)
    for weight in model.weights:
        if "kernel" in weight.name:
            weight.assign(rng.normal(size=weight.shape))
    return model


@pytest.mark.backend("any")
def test_norms_alone_are_in_training_mode_and_the_model_is_not_changed():
    """Models in the model, a shared norm and a dropout; the truth is Keras's own training pass."""
    inner, reference = varied(), varied()
    image = keras.Input((8, 8, 3))
    model = keras.Model(image, inner(layers.Dropout(0.9)(image)))
    images = np.random.default_rng(3).integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
    pixels, batches = images.astype(np.float32), [np.arange(0, 10), np.arange(10, 24)]
    at_inference = numbers(reference(pixels)).argmax(axis=1)
    parts = [numbers(reference(pixels[part], training=True)) for part in batches]
    answers = np.concatenate(parts).argmax(axis=1)
    assert (answers != at_inference).any()
    before = weights_by_path(model)
    saved = SavedModel(Path("model.keras"), model, tuple("abcde"), None)
    found = accuracies_in_batches(
        saved, Split(images, answers), {"all": batches, "first": batches[:1]}
    )
    assert found == {"all": 1.0, "first": 10 / 24}
    after = weights_by_path(model)
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Tiny runs, bn with two seeds and gn, and a copy of the model of the last one."""
    folder = tmp_path_factory.mktemp("runs")
    paths = [folder / name for name in ("bn-0", "bn-1", "gn-0")]
    for path in paths:
        norm, seed = path.name.split("-")
        tiny.train(tiny.config(norm=norm, seed=int(seed), epochs=1), out=path)
    copy = folder / "copy.keras"
    copy.write_bytes((paths[-1] / "model.keras").read_bytes())
    return [*paths, copy]


@pytest.fixture(scope="module")
def answer(runs):
    return kerasnorm.robustness(runs[:3], corruptions=NAMES, severities=[5, 2])


@pytest.fixture
def pixels(monkeypatch):
    """The images that models receive; they answer at random, and nothing is drawn."""
    seen = []

    def predict(self, images):
        seen.append(images.copy())
        return np.random.default_rng(0).normal(size=(len(images), len(self.class_names)))

    monkeypatch.setattr(SavedModel, "predict", predict)
    monkeypatch.setattr(robustness, "accuracies_in_batches", lambda *_: {})
    monkeypatch.setattr(Picture, "save", lambda self, folder: folder / self.name)
    return seen


@pytest.mark.backend("any", slow_on="tensorflow")
def test_accuracies_are_those_of_keras_and_seeds_are_averaged(runs, answer):
    bn, gn = answer.data
    assert [(one.label, one.norm) for one in answer.data] == [("BN", "bn"), ("GN", "gn")]
    test = shapes(60, 20).test
    x = test.images.astype(np.float64)
    average = x.mean((1, 2), keepdims=True)
    faded = [np.floor(average + share * (x - average) + 1e-9) for share in (0.5, 0.15)]

    def truth(net, pixels, **mode):
        return (numbers(net(pixels.astype(np.float32), **mode)).argmax(1) == test.labels).mean()

    found = []
    for path, model in zip(runs, [*bn.models, *gn.models], strict=False):
        net = kerasnorm.load_model(path)
        clean, mild, strong = (truth(net, pixels) for pixels in (x, *faded))
        assert model.images == 20
        assert np.isclose(model.clean, clean)
        assert model.corrupted["contrast"] == pytest.approx({2: mild, 5: strong})
        found.append((clean, mild, strong))
    for interval, values in (
        (bn.clean, [clean for clean, _, _ in found[:2]]),
        (bn.corrupted["contrast"][5], [strong for _, _, strong in found[:2]]),
        (bn.means["contrast"], [(mild + strong) / 2 for _, mild, strong in found[:2]]),
        (bn.mean, [mean(map(one.mean, NAMES)) for one in bn.models]),
        (bn.loss, [one.clean - mean(map(one.mean, NAMES)) for one in bn.models]),
    ):
        assert (interval.n, interval.mean) == (2, pytest.approx(mean(values)))
        assert interval.std == pytest.approx(stdev(values))
    assert gn.mixed.mean == gn.one_class.mean == gn.clean.mean  # every image is normalized alone
    net = kerasnorm.load_model(runs[0])
    for kind, parts in batches_of(test.labels, 0).items():
        right = 0
        for part in parts:
            logits = numbers(net(test.images[part].astype(np.float32), training=True))
            right += (logits.argmax(1) == test.labels[part]).sum()
        assert np.isclose(getattr(bn.models[0], kind), right / 20)


@pytest.mark.long
def test_losses_are_compared_seed_by_seed(runs, answer):
    """The pairs are those of seed 0, in whatever order the runs are named."""
    losses = {
        model.path.parent.name: model.clean - mean(map(model.mean, NAMES))
        for one in answer.data
        for model in one.models
    }
    assert losses["bn-0"] != losses["bn-1"]
    points = 100 * (losses["bn-0"] - losses["gn-0"])
    table = loss_table(answer.data)
    assert table.rows == [("BN", "GN", "1", f"{points:+z.2f}", "-", "-", "no verdict")]
    assert "points of lost accuracy" in table.notes[0]
    turned = kerasnorm.robustness(runs[2::-1], corruptions=NAMES, severities=[5, 2])
    assert loss_table(turned.data).rows == [
        ("GN", "BN", "1", f"{-points:+z.2f}", "-", "-", "no verdict")
    ]
    alone = kerasnorm.robustness([*runs[:2], runs[3]], corruptions=["contrast"], severities=[1])
    assert loss_table(alone.data).rows == []  # a model file has no seed


def test_losses_of_three_seeds_get_a_verdict():
    """Differences of 10, 11 and 12 points, by hand: std 1, t(2) at 97.5 % 4.3027, p 0.0027."""
    runs, found = [], {}
    for norm, losses in {"bn": (0.20, 0.23, 0.22), "gn": (0.10, 0.12, 0.10)}.items():
        for seed, loss in enumerate(losses):
            run = studies.make_run(0.9, norm=norm, seed=seed)
            path = run.path / "model.keras"
            runs.append(run)
            found[path] = ModelRobustness(path, 20, 0.9, {"contrast": {1: 0.9 - loss}}, None, None)
    table = loss_table(entries_of_runs(runs, found))
    cells = ("3", "+11.00", "+8.52 to +13.48", "0.003", "different")
    assert table.rows == [("BN", "GN", *cells)]
    assert "on the same images" in table.notes[-1]
    # Each seed holds other images out for validation.
    table = loss_table(entries_of_runs(runs, found), split="validation", margin=0.14)
    assert table.rows == [("BN", "GN", *cells[:-1], "equivalent")]
    assert "on the same images" not in table.notes[-1]


@pytest.mark.long
def test_the_options_decide_what_is_measured(runs, tmp_path, pixels):
    def measured(*words):
        pixels.clear()
        noise = ["--corruption", "gaussian-noise", "--severity", 3, "--out", tmp_path / "out"]
        out = json.loads(call("robustness", runs[3], *noise, *words, "--json")[0])
        (model,) = out["data"][0]["models"]
        return model["images"], *pixels

    count, clean, noisy = measured()
    assert count == 20
    assert np.array_equal(clean, shapes(60, 20).test.images)
    inner = (clean > 80) & (clean < 175)  # five standard deviations from the ends
    assert np.isclose((noisy.astype(float) - clean)[inner].std(), 255 * 0.08, rtol=0.05)
    assert np.array_equal(measured()[2], noisy)
    count, same, other = measured("--images", 99, "--seed", 1)
    assert count == 20
    assert np.array_equal(same, clean)
    assert not np.array_equal(other, noisy)
    count, few, _ = measured("--images", 10)
    assert count == 10
    assert all(any((image == other).all() for other in clean) for image in few)
    assert not np.array_equal(measured("--images", 10, "--seed", 1)[1], few)
    assert np.array_equal(measured("--split", "train")[1], shapes(60, 20).train.images)
    classes = np.arange(12) % 10
    small = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    arrays = {"x_train": small, "x_test": small, "y_train": classes, "y_test": classes}
    np.savez(tmp_path / "small.npz", **arrays)
    assert "--resize" in call("robustness", runs[3], "--data", tmp_path / "small.npz", code=3)[1]
    stretched = measured("--data", tmp_path / "small.npz", "--resize", "stretch")
    padded = measured("--data", tmp_path / "small.npz", "--resize", "pad")
    assert stretched[0] == padded[0] == 12
    assert stretched[1].shape == padded[1].shape == (12, 32, 32, 3)


def test_models_see_the_same_images_in_whatever_order_they_have_the_classes(
    tmp_path, monkeypatch, pixels
):
    """The second model has its classes in another order; they hold 70, 40 and 10 images."""
    monkeypatch.setattr(
        robustness, "accuracies_in_batches", lambda *found: batches.append(found) or {}
    )
    batches = []
    rng = np.random.default_rng(0)
    for name, count in {"ape": 70, "bee": 40, "cat": 10}.items():
        for split in ("train", "test"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                picture = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(picture).save(folder / f"{number}.png")
    image = keras.Input((8, 8, 3))
    net = keras.Model(image, layers.Dense(3)(layers.Flatten()(image)))
    orders = (("ape", "bee", "cat"), ("cat", "ape", "bee"))
    models = [SavedModel(tmp_path / f"{o[0]}.keras", net, o, None) for o in orders]
    for count in (0, 30):
        pixels.clear()
        batches.clear()
        words = {"data": str(tmp_path / "images"), "severities": [1], "images": count}
        kerasnorm.robustness(models, corruptions=["gaussian-noise"], **words)
        clean, noisy, other_clean, other_noisy = pixels
        assert len(clean) == (count or 120)
        assert np.array_equal(clean, other_clean)
        assert np.array_equal(noisy, other_noisy)
        (_, split, found), (_, other, others) = batches
        names = np.array(orders[0])[split.labels], np.array(orders[1])[other.labels]
        assert np.array_equal(*names)
        for part, same in zip(found["mixed"], others["mixed"], strict=True):
            assert np.array_equal(part, same)
        assert {*map(tuple, found["one_class"])} == {*map(tuple, others["one_class"])}


@pytest.mark.long
def test_the_input_scale_is_that_of_evaluate(tmp_path):
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, activation="tanh")(image)
    keras.Model(image, layers.Dense(3)(layers.Flatten()(x))).save(tmp_path / "raw.keras")
    images = np.random.default_rng(0).integers(0, 256, (90, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(90) % 3
    arrays = {"x_train": images, "x_test": images, "y_train": labels, "y_test": labels}
    np.savez(tmp_path / "images.npz", **arrays)
    found = {}
    for scale in ("0-1", "0-255"):
        words = [tmp_path / "raw.keras", "--data", tmp_path / "images.npz", "--input-scale", scale]
        clean = json.loads(call("evaluate", *words, "--json")[0])["accuracy"]
        words += ["--severity", 1, "--corruption", "contrast", "--out", tmp_path, "--json"]
        found[scale] = json.loads(call("robustness", *words)[0])["data"][0]["clean"]["mean"]
        assert found[scale] == clean
    assert found["0-1"] != found["0-255"]


def test_corrupted_images_are_equalized_as_others_are(tmp_path, pixels):
    config = tiny.config(preprocessing="equalize", epochs=1)
    run = tiny.train(config, out=tmp_path / "run")
    pixels.clear()
    kerasnorm.robustness([run], corruptions=["contrast"], severities=[5])
    raw = shapes(60, 20).test.images
    assert np.array_equal(pixels[0], equalize(raw))
    assert np.array_equal(pixels[1], equalize(corrupted("contrast", raw, 5)))


def test_the_table_and_the_figure_show_all(answer):
    table = robustness_table(answer.data)
    titles = [CORRUPTIONS[name].title for name in NAMES]
    assert [c.removeprefix(">") for c in table.columns] == [
        *("model", "n", "clean", *titles, "mean", "lost", "mixed", "one class")
    ]
    assert [row[:2] for row in table.rows] == [("BN", "2"), ("GN", "1")]
    assert "on 20 images" in table.notes[0]
    assert "severities 2, 5" in table.notes[0]
    (picture,) = answer.pictures
    panels = [axes for axes in picture.figure.axes if axes.axison]
    assert [axes.get_title() for axes in panels] == [*map(str.upper, titles), BATCH_PANEL]
    for axes, name in zip(panels, NAMES, strict=False):
        for line, one in zip(axes.lines, answer.data, strict=True):
            points = [one.clean, one.corrupted[name][2], one.corrupted[name][5]]
            assert line.get_xdata().tolist() == [0, 2, 5]
            assert np.allclose(line.get_ydata(), [100 * point.mean for point in points])
            assert to_hex(line.get_color()) == NORMS[one.norm].color.lower()
    line, bn = panels[-1].lines[0], answer.data[0]
    batches = (bn.clean, bn.mixed, bn.one_class)
    assert np.allclose(line.get_ydata(), [100 * one.mean for one in batches])
    assert "BN" in picture.alt
    assert "seeds" in picture.caption


@pytest.mark.parametrize("accuracies", [(0.0, 0.0, 0.1), (0.9, 1.0, 1.0)])
def test_shades_end_where_no_accuracy_can_be(accuracies):
    axes = Figure().subplots()
    robustness._draw(axes, dict.fromkeys((0, 1), Interval.of(accuracies)), {"color": "black"})
    box = axes.collections[0].get_paths()[0].get_extents()
    assert (box.y0 == 0) != (box.y1 == 100)
    assert 0 <= box.y0 < box.y1 <= 100


@pytest.mark.long
def test_the_command_writes_numbers_and_figure(runs, tmp_path):
    words = ["robustness", runs[3], "--corruption", "contrast", "--severity", 5, "--severity", 2]
    out, err = call(*words, "--out", tmp_path, "--json")
    document = json.loads(out)
    (one,) = document["data"]
    assert (one["label"], one["norm"]) == ("copy.keras", "keep")
    assert {name: {*found} for name, found in one["corrupted"].items()} == {"contrast": {"2", "5"}}
    assert json.loads((tmp_path / "robustness.json").read_text()) == document["data"]
    assert document["figures"] == [str(tmp_path / "robustness.png")]
    assert (tmp_path / "robustness.png").is_file()
    assert "robustness: 4/4" in err  # clean, two severities, batches
    out, err = call(*words, "--out", tmp_path, "--quiet")
    assert "one class" in out
    assert err == ""


class Running(layers.Layer):
    """A batch norm of the user's whose moving statistics have other names and another shape."""

    def __init__(self, shape, **options):
        super().__init__(**options)
        self.shape = shape
        self.middle = self.add_weight(shape=shape, initializer="zeros", trainable=False)
        self.power = self.add_weight(shape=shape, initializer="ones", trainable=False)

    def get_config(self):
        return super().get_config() | {"shape": self.shape}

    def call(self, x, training=None):
        mean, variance = self.middle, self.power
        if training:
            mean, variance = keras.ops.moments(x, axes=(0, 1, 2), keepdims=True)
            for moving, now in ((self.middle, mean), (self.power, variance)):
                moving.assign(0.9 * moving + 0.1 * keras.ops.reshape(now, self.shape))
        return (x - mean) / keras.ops.sqrt(variance + 1e-3)


class Constant(layers.Layer):
    """A layer that keeps a number, which training does not change; in training it gives 0."""

    def __init__(self, **options):
        super().__init__(**options)
        self.number = self.add_weight(shape=(), initializer="ones", trainable=False)

    def call(self, x, training=None):
        return x * 0 if training else x * self.number


@pytest.mark.backend("any")
@pytest.mark.parametrize("shape", [(3,), (1, 1, 1, 3)])
def test_moving_statistics_are_found_by_whatever_name_and_shape(shape):
    """The truth is a BatchNormalization in place of the user's own norm."""
    rng = np.random.default_rng(3)  # images differ in their brightness, and so do pairs of them
    images = rng.uniform(0, rng.uniform(20, 256, (24, 1, 1, 1)), (24, 8, 8, 3)).astype(np.uint8)
    pairs = [*np.arange(24).reshape(12, 2)]
    batches = {"all": [np.arange(0, 10), np.arange(10, 24)], "pairs": pairs}
    kernel = np.random.default_rng(4).normal(size=(192, 5))

    def found(norm, labels):
        pixels = keras.Input((8, 8, 3))
        x = layers.Flatten()(norm(Constant()(pixels)))
        model = keras.Model(pixels, layers.Dense(5, name="head")(x))
        model.get_layer("head").set_weights([kernel, np.zeros(5)])
        saved = SavedModel(Path("model.keras"), model, tuple("abcde"), None)
        before = [weight.copy() for weight in model.get_weights()]
        accuracies = accuracies_in_batches(saved, Split(images, labels), batches)
        after = model.get_weights()
        assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
        parts = [images[part].astype("float32") for part in batches["all"]]
        outputs = np.concatenate([numbers(norm(part, training=True)) for part in parts])
        right = (outputs.reshape(24, -1) @ kernel).argmax(axis=1)
        return accuracies, right

    _, right = found(layers.BatchNormalization(scale=False, center=False), np.zeros(24, np.int32))
    for norm in (layers.BatchNormalization(scale=False, center=False), Running(shape)):
        accuracies, _ = found(norm, right)
        assert accuracies["all"] == 1.0
        assert accuracies["pairs"] < 1.0  # other statistics, other answers


class Hiding(layers.Layer):
    """A layer with a norm that no graph shows."""

    def __init__(self):
        super().__init__()
        self.norm = layers.BatchNormalization()

    def call(self, x, training=None):
        return self.norm(x, training=training)


def test_a_model_without_a_training_mode_says_why(runs):
    export = ExportedModel(Path("m.onnx"), (), None, (8, 8, 3), False, None, process=None)
    with pytest.raises(ConfigError, match=r"m.onnx runs in onnxruntime, which has no training"):
        accuracies_in_batches(export, Split(EVERY_KIND, np.zeros(4, np.int32)), {})
    saved = open_model(runs[2])
    hidden = keras.Sequential([keras.Input((32, 32, 3)), Hiding(), saved.model])
    saved = SavedModel(Path("hidden.keras"), hidden, saved.class_names, saved.config)
    answer = kerasnorm.robustness([saved], corruptions=["contrast"], severities=[1])
    (one,) = answer.data
    assert one.mixed is one.one_class is None
    table = robustness_table(answer.data)
    assert table.rows[0][-2:] == ("-", "-")
    assert any("Hiding" in note and "training mode" in note for note in table.notes)
    assert [axes.get_title() for axes in answer.pictures[0].figure.axes] == ["CONTRAST"]


def test_mistakes_get_one_clear_message(runs):
    for models, options, named in (
        ([], {}, "at least one run or model"),
        (runs, {"corruptions": ["fog"]}, "gaussian-noise, gaussian-blur"),
        (runs, {"severities": [6]}, "1 to 5"),
        (runs, {"images": -1}, "at least 0"),
    ):
        with pytest.raises(ConfigError, match=named):
            kerasnorm.robustness(models, **options)
    for words in (["--severity", 0], ["--corruption", "fog"], ["--backend", "jax"], []):
        call("robustness", *(runs[:1] if words else ()), *words, code=2)


@pytest.mark.slow
def test_an_export_is_measured_on_corrupted_images(exports, tmp_path):
    names = [name for name in ("onnx", "litert", "keras") if name in exported.possible()]
    paths = [exported.path_of(exports, name) for name in names]
    images, labels = np.concatenate([exported.IMAGES] * 2), np.arange(10)
    arrays = {"x_train": images, "x_test": images[::-1], "y_train": labels, "y_test": labels}
    np.savez(tmp_path / "images.npz", **arrays)
    words = ["--data", tmp_path / "images.npz", "--out", tmp_path]
    out = json.loads(call("robustness", *paths, *words, "--json")[0])["data"]
    assert len({json.dumps(one["corrupted"]) for one in out}) == 1
    assert [one["mixed"] is None for one in out] == [name != "keras" for name in names]
