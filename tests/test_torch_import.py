"""PyTorch weights by any author become the same function in Keras."""

from pathlib import Path

import numpy as np
import pytest
from helpers.command import call
from helpers.pairs import pairs

torch = pytest.importorskip("torch")  # before Keras, which may import TensorFlow
from keras import ops  # noqa: E402
from torch import nn  # noqa: E402

from kerasnorm.errors import ConfigError, CorruptFileError  # noqa: E402
from kerasnorm.formats.archive import load_model  # noqa: E402
from kerasnorm.formats.safety.torch_files import read_pickled  # noqa: E402
from kerasnorm.network import CIFAR10_MEAN, CIFAR10_STD  # noqa: E402
from kerasnorm.torch_import import import_tensors, read_tensors, sorted_by_words  # noqa: E402

pytestmark = pytest.mark.backend("any")

SIZE = 8
WIDTHS = (8, 8, 6, 16, 16, 16, 12, 16, 16, 16)


class PerPixel(nn.Module):
    """Normalizes the channels of each pixel."""

    def __init__(self, norm):
        super().__init__()
        self.inner = norm

    def forward(self, x):
        return self.inner(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def norm_of(kind, channels, size):
    return {
        "bn": lambda: nn.BatchNorm2d(channels),
        "gn": lambda: nn.GroupNorm(channels // 4, channels),
        "ln": lambda: nn.GroupNorm(1, channels),
        "ln-element": lambda: nn.LayerNorm((channels, size, size)),
        "lnc": lambda: PerPixel(nn.LayerNorm(channels, eps=1e-5)),
        "in": lambda: nn.InstanceNorm2d(channels, affine=True),
        "rms": lambda: PerPixel(nn.RMSNorm(channels, eps=1e-5)),
        "none": nn.Identity,
    }[kind]()


class Network(nn.Module):
    """The published network as its authors might write it, at other widths."""

    def __init__(self, kind):
        super().__init__()
        a, b, c, d, e, f, g, h, i, j = WIDTHS

        def unit(inputs, outputs, size):
            convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            rest = nn.ReLU(), norm_of(kind, outputs, size), nn.Dropout(0.01)
            return nn.Sequential(convolution, *rest)

        def narrow(inputs, outputs):
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, bias=False), nn.ReLU(), nn.MaxPool2d(2)
            )

        half, quarter = SIZE // 2, SIZE // 4
        self.convblock1 = nn.Sequential(unit(3, a, SIZE), unit(a, b, SIZE))
        self.transblock1 = narrow(b, c)
        self.convblock2 = nn.Sequential(unit(c, d, half), unit(d, e, half), unit(e, f, half))
        self.transblock2 = narrow(f, g)
        last = unit(g, h, quarter), unit(h, i, quarter), unit(i, j, quarter)
        self.convblock3 = nn.Sequential(*last)
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(j, 10, 1, bias=False)

    def forward(self, x):
        x = self.transblock1(self.convblock1(x))
        x = self.transblock2(self.convblock2(x))
        return self.fc1(self.gap(self.convblock3(x))).flatten(1)


def network(kind):
    torch.manual_seed(0)
    model = Network(kind)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point() and value.ndim in (1, 3):
                value.uniform_(0.5, 1.5)
    return model.eval()


def theirs(model, images):
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (CIFAR10_MEAN, CIFAR10_STD))
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        return model((x - mean) / std).numpy()


def imported(tensors, kind, **options):
    given = {"norm": kind.partition("-")[0], "recipe": "era8"} | options
    return import_tensors(tensors, given, image_size=(SIZE, SIZE))


def named(model):
    return [(name, value.numpy()) for name, value in model.state_dict().items()]


def by_module(model):
    groups = {}
    for name, value in named(model):
        groups.setdefault(name.rpartition(".")[0], []).append((name, value))
    return list(groups.values())


def shuffled(model):
    """Its tensors, if the modules were registered in another order than they are called."""
    groups = by_module(model)
    order = np.random.default_rng(1).permutation(len(groups))
    return [item for place in order for item in groups[place]]


IMAGES = np.random.default_rng(0).integers(0, 256, (7, SIZE, SIZE, 3), dtype=np.uint8)
KINDS = ("bn", "gn", "ln", "ln-element", "lnc", "in", "rms", "none")
ORDERS = {
    "as they are": named,
    "nameless": lambda model: [(str(i), v) for i, (_, v) in enumerate(named(model))],
    "by name": lambda model: sorted(named(model)),
    "norms first": lambda model: sorted(named(model), key=lambda item: item[1].ndim == 4),
    "backwards": lambda model: [item for group in by_module(model)[::-1] for item in group],
    "shuffled": shuffled,
}


@pytest.mark.backend("any", long_on="tensorflow")
@pytest.mark.parametrize(("kind", "order"), pairs(KINDS, ORDERS))
def test_the_logits_are_those_of_pytorch(kind, order):
    model = network(kind)
    ours = imported(ORDERS[order](model), kind).model
    answers = ops.convert_to_numpy(ours(IMAGES, training=False))
    np.testing.assert_allclose(answers, theirs(model, IMAGES), rtol=1e-4, atol=1e-4)


# Where instance normalization comes last, its mean over space is its shift, whatever epsilon is.
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("none", "in")])
@pytest.mark.backend("any", long_on="tensorflow")
def test_another_epsilon_gives_the_logits_of_pytorch_too(kind):
    model, epsilon = network(kind), 0.1
    for module in model.modules():
        if hasattr(module, "eps"):
            module.eps = epsilon
    expected = theirs(model, IMAGES)
    given = {"norm": kind.partition("-")[0], "recipe": "era8"}
    ours = import_tensors(named(model), given, image_size=(SIZE, SIZE), epsilon=epsilon).model
    answers = ops.convert_to_numpy(ours(IMAGES, training=False))
    np.testing.assert_allclose(answers, expected, rtol=1e-4, atol=1e-4)
    wrong = ops.convert_to_numpy(imported(named(model), kind).model(IMAGES, training=False))
    assert np.abs(wrong - expected).max() > 1e-3


@pytest.mark.parametrize(
    ("suffix", "nested"),
    [
        (".pth", False),
        (".ckpt", True),
        (".bin", False),
        (".safetensors", False),
        pytest.param(".pt", True, marks=pytest.mark.slow),
        pytest.param(".pth.tar", True, marks=pytest.mark.slow),
    ],
)
@pytest.mark.backend("any", slow_on="tensorflow")
def test_files_give_the_tensors_that_were_saved(tmp_path, suffix, nested):
    state = network("bn").state_dict()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        pytest.importorskip("safetensors.torch").save_file(state, path)
    else:
        torch.save({"epoch": 3, "state_dict": state} if nested else state, path)
    read = dict(read_tensors(path))
    assert {*read} == {*state}
    for name, value in state.items():
        np.testing.assert_array_equal(read[name], value.numpy())
    model = imported(read_tensors(path), "bn").model
    answers = ops.convert_to_numpy(model(IMAGES, training=False))
    np.testing.assert_allclose(answers, theirs(network("bn"), IMAGES), rtol=1e-4, atol=1e-4)


@pytest.mark.backend("any", long_on="tensorflow")
def test_counters_are_ignored_and_every_weight_has_its_tensor():
    found = imported(named(network("bn")), "bn")
    assert len(found.ignored) == 8
    assert all(name.endswith("num_batches_tracked") for name in found.ignored)
    assert len(found.matched) == len(found.model.weights)


@pytest.mark.backend("any", long_on="tensorflow")
def test_a_linear_head_fits_too():
    tensors = named(network("gn"))
    tensors[-1] = ("head.weight", tensors[-1][1][:, :, 0, 0])
    answers = ops.convert_to_numpy(imported(tensors, "gn").model(IMAGES, training=False))
    np.testing.assert_allclose(answers, theirs(network("gn"), IMAGES), rtol=1e-4, atol=1e-4)


@pytest.mark.backend("any", long_on="tensorflow")
def test_what_does_not_fit_is_reported_tensor_by_tensor():
    with pytest.raises(ConfigError, match=r"convblock1\.0\.2\.running_mean \(8,\): has no place"):
        imported(named(network("bn")), "gn")
    with pytest.raises(ConfigError, match=r"convblock1_norm1 \(8,\): no tensors of that shape"):
        imported(named(network("none")), "gn")
    with pytest.raises(ConfigError, match=r"Received: 10\n  convblock1\.0\.0\.weight .*: fits"):
        imported(named(network("gn"))[:-1], "gn")
    biased = [*named(network("gn")), ("fc1.bias", np.zeros(10, np.float32))]
    with pytest.raises(ConfigError, match=r"fc1\.bias \(10,\): has no place"):
        imported(biased, "gn")


def test_an_instance_norm_without_scale_and_shift_fits():
    tensors = named(network("none"))  # InstanceNorm2d(affine=False) has no tensors
    model = imported(tensors, "in").model
    norm = next(layer for layer in model.layers if "norm" in layer.name)
    np.testing.assert_array_equal(norm.get_weights(), [np.ones(8), np.zeros(8)])


@pytest.mark.parametrize(
    "nest",
    [
        lambda state: {"losses": torch.tensor([5.0]), "state_dict": state},
        lambda state: {"checkpoint": {"model_state": state, "best": torch.tensor([0.5])}},
        lambda state: {"optimizer": {"state": {0: {"step": torch.ones(1)}}}, "weights": state},
    ],
    ids=["losses", "deep", "optimizer"],
)
@pytest.mark.backend("any", slow_on="tensorflow")
def test_the_state_dict_is_found_in_any_checkpoint(tmp_path, nest):
    state = network("gn").state_dict()
    torch.save(nest(state), tmp_path / "a.pth")
    assert {*dict(read_tensors(tmp_path / "a.pth"))} == {*state}


def averaged(state, count=0):
    """The weights of `torch.optim.swa_utils.AveragedModel`, whose names have a prefix."""
    counted = {"n_averaged": torch.tensor(count)}
    return counted | {f"module.{name}": value.clone() + count for name, value in state.items()}


@pytest.mark.parametrize(
    "nest",
    [
        lambda state: {"model": state, "model_ema": averaged(state, 1)},
        lambda state: {"model_ema": averaged(state, 1), "model": state},
        lambda state: {"a": {"model": averaged(state, 2)}, "model_ema": state},
    ],
)
def test_one_of_several_state_dicts_must_be_chosen(tmp_path, nest):
    path = tmp_path / "a.pth"
    torch.save(nest(network("gn").state_dict()), path)
    with pytest.raises(CorruptFileError, match=r"2 state_dicts .*'model.*'model") as caught:
        read_pickled(path, tmp_path / "tensors.npz")
    command = str(caught.value).partition("you want: ")[2]
    exec(command.replace("'weights.pth'", "out"), {"torch": torch, "out": tmp_path / "b.pth"})
    read_pickled(tmp_path / "b.pth", tmp_path / "tensors.npz")


def test_equal_state_dicts_are_one(tmp_path):
    state = network("gn").state_dict()
    torch.save({"model": state, "model_ema": averaged(state)}, tmp_path / "a.pth")
    names = read_pickled(tmp_path / "a.pth", tmp_path / "tensors.npz")
    assert names == [*state]


def test_bfloat16_and_half_tensors_are_read(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    state = network("gn").state_dict()
    kinds = (torch.bfloat16, torch.float16, torch.float64)
    cast = {name: value.to(kinds[n % 3]) for n, (name, value) in enumerate(state.items())}
    safetensors.save_file(cast, tmp_path / "a.safetensors")
    for name, value in read_tensors(tmp_path / "a.safetensors"):
        np.testing.assert_array_equal(value, cast[name].float().numpy())


def test_kernels_whose_order_the_names_do_not_tell_are_named(tmp_path):
    numbered = named(network("none"))
    assert sorted_by_words(Path("a.safetensors"), numbered) == []
    assert sorted_by_words(Path("a.pth"), numbered[::-1]) == []
    words = [(chr(ord("a") + n), value) for n, (_, value) in enumerate(numbered)]
    twins = ["e", "f", "i", "j"]  # 16 to 16 channels
    assert sorted_by_words(Path("a.safetensors"), words) == twins
    assert sorted_by_words(Path("a.pth"), words) == []  # keeps its order
    assert sorted_by_words(Path("a.pth"), words[::-1]) == twins[::-1]


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.backend("any", slow_on="tensorflow")
def test_programs_and_checkpoints_with_other_objects_are_refused_with_the_way_out(tmp_path):
    layer = nn.Conv2d(3, 4, 3)
    torch.jit.script(layer).save(tmp_path / "script.pt")
    torch.save({"state_dict": layer.state_dict(), "path": Path("data")}, tmp_path / "a.ckpt")
    torch.save(layer, tmp_path / "whole.bin")
    for name, message in {
        "script.pt": r"is a TorchScript program, which runs .*state_dict\(\), 'weights\.pth'",
        "a.ckpt": r"wants to run pathlib\.\w+.*weights_only=False\)\['state_dict'\]",
        "whole.bin": r"wants to run torch\.nn\.modules\.conv\.Conv2d.*Expected a state_dict",
    }.items():
        with pytest.raises(CorruptFileError, match=message):
            read_pickled(tmp_path / name, tmp_path / "tensors.npz")


@pytest.mark.backend("any", long_on="tensorflow")
def test_the_epsilon_that_a_file_does_not_hold_is_named(tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file(network("bn").state_dict(), tmp_path / "a.safetensors")
    words = ("import-torch", tmp_path / "a.safetensors", "--norm", "bn", "--recipe", "era8")
    size = ("--image-size", f"{SIZE},{SIZE}", "--out")
    _, err = call(*words, *size, tmp_path / "a.keras")
    assert "The norms have an epsilon of 1e-5" in err
    _, err = call(*words, "--epsilon", "1e-3", *size, tmp_path / "b.keras")
    assert "epsilon of" not in err
    layers = load_model(tmp_path / "b.keras").layers
    assert {layer.epsilon for layer in layers if hasattr(layer, "epsilon")} == {1e-3}
    assert "--epsilon" in call(*words, "--epsilon", "0", *size, tmp_path / "c.keras", code=2)[1]


@pytest.mark.backend("any", slow_on="tensorflow")
def test_files_that_hold_no_tensors_are_refused(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "a.pth")
    with pytest.raises(CorruptFileError, match=r"no state_dict.*Received: epoch"):
        read_tensors(tmp_path / "a.pth")
    (tmp_path / "a.h5").write_bytes(b"x")
    with pytest.raises(CorruptFileError, match=r"Expected a file of torch\.save \(\.pth, \.pt, "):
        read_tensors(tmp_path / "a.h5")
    with pytest.raises(CorruptFileError, match="no model file"):
        read_tensors(tmp_path / "missing.pth")
