"""The kernels of the torch engine against PyTorch in float64."""

import keras
import numpy as np
import pytest

torch = pytest.importorskip("torch")
if keras.backend.backend() != "torch":
    pytest.skip("needs the torch backend", allow_module_level=True)

from torch.nn import functional as F  # noqa: E402

from kerasnorm.engines.torch.kernels import batch_norm, channels_last, group_norm  # noqa: E402


@pytest.mark.parametrize("mean", [0, 3, 30, 100, 1000])  # on both sides of `SAFE_RATIO`
@pytest.mark.parametrize("groups", [1, 3])
def test_group_norm_is_as_exact_as_its_input_whatever_the_mean(mean, groups):
    rng = np.random.default_rng(0)
    x = torch.from_numpy(mean + rng.standard_normal((4, 12, 8, 8)).astype(np.float32))
    x, gamma, beta, ways = channels_last(x), torch.rand(12), torch.rand(12), torch.randn(x.shape)

    def pass_through(kind, normalize):
        tensors = [t.to(kind).requires_grad_() for t in (x, gamma, beta)]
        y = normalize(*tensors)
        return y, *torch.autograd.grad(y, tensors, ways.to(kind))

    received = pass_through(torch.float32, lambda x, g, b: group_norm(x, groups, g, b, 1e-5))
    expected = pass_through(torch.float64, lambda x, g, b: F.group_norm(x, groups, g, b, 1e-5))
    for ours, theirs in zip(received, expected, strict=True):
        assert (ours - theirs).abs().max() <= 5e-4 * theirs.abs().max()


@pytest.mark.parametrize(
    ("asked", "is_leaf"),  # where x is none, nothing before the norm is trained
    [(asked, False) for asked in ("gamma", "beta", "gamma beta")]
    + [(asked, True) for asked in ("gamma", "beta", "gamma beta", "x", "x beta", "x gamma beta")],
)
@pytest.mark.parametrize(("channels", "groups"), [(2, 1), (12, 3), (16, 16)])
def test_group_norm_has_any_gradient_without_the_others(channels, groups, asked, is_leaf):
    """PyTorch's own ends the process without that of x, on a CPU in channels-last memory."""
    torch.manual_seed(channels)
    x = channels_last(torch.randn(3, channels, 4, 6)).requires_grad_(is_leaf)
    parts = {"x": x, **{name: torch.rand(channels).requires_grad_() for name in ("gamma", "beta")}}
    exact = {  # PyTorch's own in memory of the usual order
        name: part.detach().double().contiguous().requires_grad_() for name, part in parts.items()
    }
    ways, names = torch.randn(x.shape), asked.split()
    y = group_norm(x, groups, parts["gamma"], parts["beta"], 1e-5)
    found = torch.autograd.grad(y, [parts[name] for name in names], ways)
    z = F.group_norm(exact["x"], groups, exact["gamma"], exact["beta"], 1e-5)
    expected = torch.autograd.grad(z, [exact[name] for name in names], ways.double())
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


@pytest.mark.parametrize("channels", [12, 16])  # our own kernel and PyTorch's
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_batch_norm_of_any_width_equals_pytorch_in_float64(channels, kind):
    x = (3 + torch.randn(6, channels, 5, 7)).to(kind).requires_grad_()
    gamma, beta, ways = torch.rand(channels) + 0.5, torch.rand(channels), torch.randn(x.shape)
    moving = torch.zeros(channels), torch.ones(channels)
    y = batch_norm(channels_last(x), gamma, beta, moving, 0.9, 1e-5)
    (slope,) = torch.autograd.grad(y, x, ways.to(kind))
    exact = x.detach().double().requires_grad_()
    z = F.batch_norm(exact, None, None, gamma.double(), beta.double(), True, 0.0, 1e-5)
    (expected,) = torch.autograd.grad(z, exact, ways.to(kind).double())
    tolerance = 1e-5 if kind is torch.float32 else 2e-2
    assert y.dtype == slope.dtype == kind
    assert (y - z).abs().max() <= tolerance * z.abs().max()
    assert (slope - expected).abs().max() <= tolerance * expected.abs().max()
    values = exact.detach().permute(1, 0, 2, 3).flatten(1)
    assert torch.allclose(moving[0].double(), 0.1 * values.mean(1), rtol=tolerance)
    biased = values.var(1, correction=0)
    assert torch.allclose(moving[1].double(), 0.9 + 0.1 * biased, rtol=tolerance)
