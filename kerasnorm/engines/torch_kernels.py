"""Tensor functions that PyTorch lacks or computes slower, or less exactly, than it could.

All take 4-D tensors as (N, C, H, W) in channels-last memory, which is what oneDNN and cuDNN are
fastest on; `torch.autograd` carries their gradients. Those whose backward writes into the gradient
that it is given say so: their caller must know that nobody else reads that gradient.
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F  # noqa: N812  (its usual name)


def channels_last(x: Tensor) -> Tensor:
    """Returns x (N, C, H, W) in channels-last memory, itself where it lies so already."""
    return x.contiguous(memory_format=torch.channels_last)


def _flat(x: Tensor) -> Tensor:
    """Returns the memory of a channels-last tensor as one row, a view."""
    return x.permute(0, 2, 3, 1).view(-1)


def _rows(x: Tensor) -> Tensor:
    """Returns x (N, C, H, W) as (N, H * W, C), a view if its memory is channels-last."""
    return channels_last(x).permute(0, 2, 3, 1).flatten(1, 2)


class _ReLU(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        x.clamp_min_(0)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        gradient = channels_last(gradients[0])
        write = torch.ops.aten.threshold_backward.grad_input
        masked: Tensor = write(gradient, y, 0, grad_input=gradient)
        return masked


def relu_(x: Tensor) -> Tensor:
    """Applies ReLU to x in place; backward writes into its gradient."""
    y: Tensor = _ReLU.apply(x)
    return y


class _ZeroAt(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, positions: Tensor, owns_gradient: bool) -> Tensor:
        ctx.mark_dirty(x)
        ctx.positions = positions
        ctx.owns_gradient = owns_gradient
        _flat(x).index_fill_(0, positions, 0.0)
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        gradient = channels_last(gradients[0])
        if not ctx.owns_gradient:
            gradient = gradient.clone()
        _flat(gradient).index_fill_(0, ctx.positions, 0.0)
        return gradient, None, None


def zero_at_(x: Tensor, positions: Tensor, owns_gradient: bool) -> Tensor:
    """Sets x to 0 at positions of its memory, in place.

    Backward writes into its gradient if `owns_gradient`, else into a copy.
    """
    y: Tensor = _ZeroAt.apply(x, positions, owns_gradient)
    return y


def dropped_positions(rng: np.random.Generator, count: int, rate: float) -> NDArray[np.int64]:
    """Returns which of `count` values a dropout of probability `rate` takes, ascending.

    Each is taken independently, exactly as if a coin were thrown for it: the gaps between the
    taken ones are geometric, and drawing them costs count * rate numbers instead of count.
    """
    scale = -1 / math.log1p(-rate)
    expected = count * rate
    size = int(expected + 6 * math.sqrt(expected) + 10)  # enough but for once in 1e9
    parts, end = [], -1.0
    while end < count:
        gaps = np.floor(rng.standard_exponential(size) * scale) + 1
        parts.append(np.cumsum(gaps) + end)
        end = parts[-1][-1]
    positions = np.concatenate(parts)
    return positions[: np.searchsorted(positions, count)].astype(np.int64)


def _group_means(sums: Tensor, groups: int, pixels: int) -> Tensor:
    """Turns sums over pixels (N, C) into means over each group of channels, (N, 1, C)."""
    count, channels = sums.shape
    means = sums.view(count, groups, -1).sum(2, keepdim=True) / (pixels * channels // groups)
    return means.expand(count, groups, channels // groups).reshape(count, 1, channels)


class _GroupNorm(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, groups: int, epsilon: float
    ) -> Tensor:
        rows = _rows(x)
        centered = rows - _group_means(rows.sum(1), groups, rows.shape[1])
        y = torch.empty_like(x, memory_format=torch.channels_last)
        written = torch.mul(centered, centered, out=_rows(y))
        variance = _group_means(written.sum(1), groups, rows.shape[1])
        rsd = torch.rsqrt_(variance.add_(epsilon))
        torch.addcmul(beta, centered, rsd * gamma, out=written)
        ctx.save_for_backward(centered, rsd, gamma)
        ctx.groups = groups
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        # With y = gamma * d * r + beta, d = x - mean(x), r = 1 / sqrt(mean(d²) + epsilon):
        # dx = r * (gamma * g - mean(gamma * g) - d * r² * mean(gamma * g * d)).
        centered, rsd, gamma = ctx.saved_tensors
        gradient = channels_last(gradients[0])
        rows, pixels = _rows(gradient), centered.shape[1]
        dx = torch.empty_like(gradient)
        written = torch.mul(rows, centered, out=_rows(dx))
        sums, dots = rows.sum(1), written.sum(1)
        first = _group_means(sums * gamma, ctx.groups, pixels)
        second = _group_means(dots * gamma, ctx.groups, pixels)
        torch.addcmul(rsd * -first, centered, rsd.pow(3) * -second, out=written)
        written.addcmul_(rows, rsd * gamma)
        return dx, (dots * rsd.squeeze(1)).sum(0), sums.sum(0), None, None


def group_norm(x: Tensor, groups: int, gamma: Tensor, beta: Tensor, epsilon: float) -> Tensor:
    """Normalizes x (N, C, H, W) over (H, W, C / groups); Wu & He, arXiv 1803.08494.

    PyTorch's own kernel takes the variance as E[x²] - E[x]² in channels-last memory, which is
    wrong where the mean is large beside the standard deviation; here the mean is subtracted first.

    Args:
        x: float32, shape (N, C, H, W).
        groups: A divisor of C.
        gamma: Scale, shape (C,).
        beta: Shift, shape (C,).
        epsilon: Added to the variance.
    """
    if groups == 1:
        # The result does not change when a constant is subtracted from a group; so no gradient
        # flows through the mean, and PyTorch's kernel, fast at one group, becomes exact.
        mean = x.detach().mean((1, 2, 3), keepdim=True)
        return F.group_norm(x - mean, 1, gamma, beta, epsilon)
    y: Tensor = _GroupNorm.apply(x, gamma, beta, groups, epsilon)
    return y


def batch_norm(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    moving: tuple[Tensor, Tensor],
    momentum: float,
    epsilon: float,
) -> Tensor:
    """Normalizes x (N, C, H, W) over (N, H, W) and updates the moving statistics as Keras does.

    moving = momentum * moving + (1 - momentum) * batch, with the biased variance; PyTorch's own
    update takes the unbiased one. Ioffe & Szegedy, arXiv 1502.03167.

    Args:
        x: Shape (N, C, H, W).
        gamma: Scale, shape (C,), or None.
        beta: Shift, shape (C,), or None.
        moving: Mean and variance, shape (C,) each, changed in place.
        momentum: Share of the old value.
        epsilon: Added to the variance.
    """
    count = x.numel() // x.shape[1]
    mean, variance = torch.zeros_like(moving[0]), torch.zeros_like(moving[1])
    y = torch.batch_norm(x, gamma, beta, mean, variance, True, 1.0, epsilon, True)
    with torch.no_grad():
        # With a momentum of 1, `variance` is now the batch's own, unbiased.
        biased = variance * ((count - 1) / count) if count > 1 else torch.zeros_like(variance)
        moving[0].lerp_(mean, 1 - momentum)
        moving[1].lerp_(biased, 1 - momentum)
    return y


def standardize_kernel(kernel: Tensor, epsilon: float) -> Tensor:
    """As `kerasnorm.norms.standardize_kernel`, for a kernel (out, in, height, width)."""
    fan_in = kernel[0].numel()
    centered = kernel - kernel.mean((1, 2, 3), keepdim=True)
    variance = centered.square().mean((1, 2, 3), keepdim=True)
    return centered * torch.rsqrt(variance * fan_in + epsilon)
