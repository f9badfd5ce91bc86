"""Fused norms against float64, and the graphs that they are taken in."""

import itertools
import os
import subprocess

import keras
import numpy as np
import pytest

torch = pytest.importorskip("torch")
if keras.backend.backend() != "torch":
    pytest.skip("needs the torch backend", allow_module_level=True)

from helpers import tiny  # noqa: E402
from helpers.pairs import pairs  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from kerasnorm.engines.fused import ACTIVATIONS, FLAGS, SOURCE  # noqa: E402
from kerasnorm.engines.torch import fused  # noqa: E402
from kerasnorm.engines.torch.layers import Mode  # noqa: E402
from kerasnorm.engines.torch.lowering import LoweredModel  # noqa: E402
from kerasnorm.training.fit import make_engine  # noqa: E402

needs_compiler = pytest.mark.skipif(fused.library() is None, reason="there is no C++ compiler")

EPSILON, RATE = 1e-3, 0.2
FUNCTIONS = {"linear": lambda x: x, "relu": torch.relu, "relu6": F.relu6, "silu": F.silu}
PAIRS = [("linear", name) for name in FUNCTIONS] + [(name, "linear") for name in FUNCTIONS][1:]
# Channels that fill no vector, one image, one pixel, one channel, many channels, many pixels.
SHAPES = [
    *((5, 16, 8, 8), (3, 12, 7, 5), (1, 10, 9, 9), (4, 40, 1, 1), (4, 1, 6, 6), (2, 96, 5, 5)),
    (2, 8, 70, 66),
]
CASES = [
    (shape, groups, offset, has_residual, (number + has_residual) % 2 == 1)
    for number, (shape, offset) in enumerate(itertools.product(SHAPES, (0.0, 1000.0)))
    for has_residual in (False, True)
    for groups in {0, 1, 2, shape[1]}
    if shape[1] % max(groups, 1) == 0
    and shape[1] * shape[2] * shape[3] > max(groups, 1)  # else each value is its own mean
]


def normal(*shape):
    return torch.from_numpy(np.random.default_rng(sum(shape)).normal(size=shape))


def reference(x, gamma, beta, residual, groups, before, after, kept):
    """The definition, by PyTorch's functions in float64; `kept` is the factor of dropout."""
    x = FUNCTIONS[before](x)
    if groups:
        y = F.group_norm(x, groups, gamma, beta, EPSILON)
    else:
        y = F.batch_norm(x, None, None, gamma, beta, True, 0.0, EPSILON)
    y = FUNCTIONS[after](y) * kept
    return y if residual is None else y + residual


def passes(function, inputs, upstream):
    """The output and the gradients of the inputs that there are."""
    given = [None if one is None else one.detach().requires_grad_() for one in inputs]
    y = function(*given)
    return [y.detach(), *torch.autograd.grad(y, [g for g in given if g is not None], upstream)]


@needs_compiler
@pytest.mark.parametrize(("functions", "dtype"), pairs(PAIRS, fused.TYPES), ids=str)
def test_a_fused_norm_is_that_of_float64(functions, dtype):
    before, after = functions
    # bfloat16 rounds what is written to 2⁻⁹ of itself; gradients of 1000 ± 1 lose more.
    tolerance = 2e-5 if dtype == torch.float32 else 1e-2
    for shape, groups, offset, has_residual, drops in CASES:
        if dtype == torch.bfloat16 and offset:
            continue  # bfloat16 has no numbers between 1000 and 1004
        x, residual = normal(*shape) + offset, normal(*shape, 1)[..., 0]
        gamma, beta = normal(shape[1]).abs() + 0.5, normal(shape[1], 1)[:, 0]
        rounded = [x.to(dtype), gamma.float(), beta.float(), residual.to(dtype)]
        rounded[3] = rounded[3] if has_residual else None
        upstream = normal(*shape, 2)[..., 0].to(dtype)
        mask = torch.rand(x.permute(0, 2, 3, 1).shape, generator=torch.manual_seed(0)) < RATE
        kept = (~mask).permute(0, 3, 1, 2) / (1 - RATE) if drops else 1
        options = {"dropped": mask.flatten().nonzero()[:, 0], "rate": RATE} if drops else {}

        def ours(x, gamma, beta, residual, groups=groups, options=options):
            norm = fused.Norm(groups, gamma, beta, EPSILON)
            assert fused.can_compute(norm, x, residual)
            return fused.normalize(norm, x, residual, before=before, after=after, **options)

        def exact(*inputs, groups=groups, kept=kept):
            return reference(*inputs, groups, before, after, kept)

        wide = [None if one is None else one.double() for one in rounded]
        expected = passes(exact, wide, upstream.double())
        received = passes(ours, rounded, upstream)
        for ours_, theirs in zip(received, expected, strict=True):
            largest = theirs.abs().max().clamp(min=0.1)
            assert float((ours_ - theirs).abs().max() / largest) < tolerance, (shape, groups)


@needs_compiler
@pytest.mark.parametrize("groups", [0, 2])
@pytest.mark.parametrize(("before", "after"), [("linear", "silu"), ("silu", "linear")])
def test_gradients_are_those_of_the_output(groups, before, after):
    inputs = [normal(2, 4, 3, 3), normal(4).abs() + 0.5, normal(4, 1)[:, 0]]

    def call(x, gamma, beta):
        norm = fused.Norm(groups, gamma.float(), beta.float(), 0.1)
        return fused.normalize(norm, x.float(), before=before, after=after).double()

    inputs = [one.requires_grad_() for one in inputs]
    assert torch.autograd.gradcheck(call, inputs, eps=1e-2, atol=2e-3, rtol=1e-2)


@needs_compiler
@pytest.mark.parametrize("groups", [0, 1])
def test_layouts_threads_and_nan(groups):
    norm = fused.Norm(groups, torch.ones(6), torch.zeros(6), EPSILON)
    x = normal(4, 6, 5, 5).float()
    y = fused.normalize(norm, x, after="silu")
    sliced = torch.cat([x, x], dim=3)[..., :5]
    assert not sliced.is_contiguous()
    assert torch.equal(fused.normalize(norm, sliced, after="silu"), y)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(fused.normalize(norm, x, after="silu"), y)
    finally:
        torch.set_num_threads(before)
    x[1, 2, 3, 3] = float("nan")
    for after in ACTIVATIONS:
        assert fused.normalize(norm, x, after=after)[1, 2].isnan().all(), after


@needs_compiler
def test_what_cannot_be_fused_is_said():
    norm = fused.Norm(1, torch.ones(6), None, EPSILON)
    x = normal(4, 6, 5, 5).float()
    assert fused.can_compute(norm, x, x)
    assert not fused.can_compute(norm, x, x[:1])  # it would be broadcast
    assert not fused.can_compute(norm, x.double())
    assert not fused.can_compute(norm, x, x.double())
    assert not fused.can_compute(norm, x[:0])
    assert not fused.can_compute(fused.Norm(1, torch.ones(6).double(), None, EPSILON), x)


def network(order, norm, residual="add", activation="relu"):
    """A convolution with its neighbours in an order, such as "norm act add"."""
    inputs = keras.Input((6, 6, 4))
    x = y = keras.layers.Conv2D(8, 3, padding="same")(inputs)
    if residual == "add":
        x = keras.layers.Conv2D(8, 1)(inputs)
    for word in order.split():
        if word == "norm":
            y = norm()(y)
        elif word == "act":
            y = keras.layers.Activation(activation)(y)
        elif word == "drop":
            y = keras.layers.Dropout(0.3)(y)
        else:
            y = keras.layers.Add()([x, y])
    if residual == "read":  # what lies between has another reader
        y = keras.layers.Concatenate()([y, x])
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(y))


def group_norm():
    return keras.layers.GroupNormalization(2, epsilon=EPSILON)


NORMS = {
    "bn": keras.layers.BatchNormalization,
    "unscaled bn": lambda: keras.layers.BatchNormalization(scale=False, momentum=0.7),
    "gn": group_norm,
    "plain gn": lambda: keras.layers.GroupNormalization(4, scale=False, center=False),
}
# Order, activation, and the number of calls left beside two convolutions and the pooling.
ORDERS = [
    ("norm", "relu", 1),
    ("norm act", "silu", 1),
    ("act norm", "relu", 1),
    ("norm act add", "relu6", 1),
    ("act norm add", "silu", 1),
    ("norm add act", "relu", 2),
    ("act norm act", "relu", 2),
    ("act norm drop", "relu", 1),
    ("norm act drop add", "silu", 1),
    ("norm drop act", "relu", 2),
    ("norm act norm act add", "relu", 2),
    ("norm act", "mish", 2),
]


@needs_compiler
@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize(("order", "activation", "calls"), ORDERS)
def test_a_fused_graph_computes_what_its_layers_do(order, activation, calls, kind):
    model = network(order, NORMS[kind], activation=activation)
    for variable in model.trainable_variables:
        variable.assign(variable + 0.1 * normal(*variable.shape).numpy())
    plain, joined = (LoweredModel(model, is_fused=on) for on in (False, True))
    is_left_to_torch = kind == "plain gn"  # it has no scale and shift, and no rule
    if not is_left_to_torch:
        assert len(joined.steps) == len(plain.steps) - len(order.split()) + calls
    x = normal(3, 6, 6, 4).float()
    start = model.get_weights()
    received = []
    for lowered in (plain, joined):
        model.set_weights(start)
        y = lowered(x, Mode(training=True, key=(1, 2, 3)))
        weights = [variable.value for variable in model.trainable_variables]
        gradients = torch.autograd.grad(y.square().sum(), weights, allow_unused=True)
        moved = [v.value.detach().clone() for v in model.non_trainable_variables]
        received.append([y.detach(), *gradients, *moved])
        assert torch.equal(lowered(x, Mode()), plain(x, Mode()))
    for ours, theirs in zip(*received, strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@needs_compiler
def test_what_has_another_reader_is_not_joined():
    inputs = keras.Input((6, 6, 4))
    x = keras.layers.Activation("relu")(inputs)
    y = group_norm()(x)
    z = keras.layers.Add()([x, keras.layers.Activation("silu")(y)])
    model = keras.Model(inputs, keras.layers.Concatenate()([z, y]))
    joined = LoweredModel(model, is_fused=True)
    assert len(joined.steps) == len(LoweredModel(model).steps)
    x = normal(2, 6, 6, 4).float()
    mode = Mode(training=True)
    assert torch.allclose(joined(x, mode), model(x), atol=1e-5)


@needs_compiler
def test_a_frozen_batch_norm_keeps_its_statistics():
    model = network("norm act", keras.layers.BatchNormalization)
    next(layer for layer in model.layers if "norm" in layer.name).trainable = False
    lowered, x = LoweredModel(model, is_fused=True), normal(3, 6, 6, 4).float()
    start = model.get_weights()
    assert torch.equal(lowered(x, Mode(training=True)), lowered(x, Mode()))
    assert all(map(np.array_equal, model.get_weights(), start))


@needs_compiler
def test_the_option_decides():
    dataset = tiny.dataset()
    on, off = (make_engine(tiny.config(fused=flag), dataset) for flag in (True, False))
    assert on.fused_kernels == fused.library().digest
    assert off.fused_kernels is None
    assert len(on.lowered.steps) < len(off.lowered.steps)


@pytest.fixture
def compilers(monkeypatch, tmp_path):
    """A folder in which compilers are looked for, and a cache of its own."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    fused.library.cache_clear()
    yield folder
    fused.library.cache_clear()


def test_without_a_compiler_layers_are_called_one_by_one(compilers, caplog):
    assert fused.library() is None
    engine = make_engine(tiny.config(fused=True), tiny.dataset())
    assert engine.fused_kernels is None
    assert np.isfinite(engine.train_epoch(0).loss)
    assert not caplog.messages


@pytest.mark.skipif(os.name == "nt", reason="a script of a shell")
def test_a_compiler_that_fails_is_said_and_passed_over(compilers, caplog, tmp_path):
    script = compilers / "g++"
    lines = "#!/bin/sh", "[ $1 = --version ] && exit", "echo In file >&2; echo error: no header >&2"
    script.write_text("\n".join([*lines, "exit 1", ""]))
    script.chmod(0o755)
    assert fused.library() is None
    assert "cannot be compiled and used here: error: no header" in caplog.text
    assert [path.name for path in (tmp_path / "extensions").iterdir() if path.suffix == ".so"] == []


@pytest.mark.skipif(os.name == "nt", reason="a script of a shell")
def test_a_library_that_does_not_open_is_said_and_passed_over(compilers, caplog):
    script = compilers / "clang++"
    script.write_text('#!/bin/sh\nfor last; do :; done\n[ $1 = --version ] || echo > "$last"\n')
    script.chmod(0o755)
    assert fused.library() is None
    assert "cannot be compiled and used here" in caplog.text
    assert LoweredModel(network("norm act", group_norm), is_fused=True).fused_kernels is None


@needs_compiler
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_norms_of_another_type_than_their_input_are_left(precision):
    other = {"float32": "mixed_bfloat16", "mixed_bfloat16": "float32"}[precision]
    inputs = keras.Input((6, 6, 4), dtype="float32")
    x = keras.layers.Conv2D(4, 1, dtype=precision)(inputs)
    x = keras.layers.GroupNormalization(2, dtype=other)(x)
    x = keras.layers.Conv2D(4, 1, dtype=other)(x)
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D(dtype="float32")(x))
    x = normal(2, 6, 6, 4).float()
    y = LoweredModel(model, is_fused=True)(x, Mode(training=True))
    assert torch.allclose(y, model(x), atol=0.05)


@needs_compiler
def test_a_norm_that_is_called_twice_is_left():
    inputs, norm = keras.Input((6, 6, 4)), keras.layers.BatchNormalization(momentum=0.5)
    first, second = norm(inputs), norm(keras.layers.Conv2D(4, 1)(inputs))
    outputs = keras.layers.Add()([keras.layers.Activation("relu")(first), second])
    model = keras.Model(inputs, outputs)
    x, start, moved = normal(2, 6, 6, 4).float(), model.get_weights(), []
    for call in (
        lambda: LoweredModel(model, is_fused=True)(x, Mode(training=True)),
        lambda: model(x, training=True),
    ):
        model.set_weights(start)
        call()
        moved.append(norm.moving_mean.numpy())
    assert np.allclose(*moved, atol=1e-6)


@needs_compiler
@pytest.mark.slow
def test_the_source_compiles_without_a_warning(tmp_path):
    words = [*FLAGS, "-Wall", "-Wextra", "-Werror", "-fopenmp", "-c", str(SOURCE)]
    subprocess.run(["g++", *words, "-o", str(tmp_path / "out.o")], check=True)
