"""Batch normalization whose statistics are those of all processes' images together."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from kerasnorm.engines.torch.kernels import channels_last

Sum = Callable[[Tensor], Tensor]


class _SyncBatchNorm(Function):
    """Returns the normalized x, and mean and biased variance, (C,) each, over all processes."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, epsilon: float, sum_: Sum
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows = _rows(x).to(gamma.dtype)
        size = torch.full((1,), float(len(rows)), dtype=rows.dtype, device=rows.device)
        stats = sum_(torch.cat([rows.sum(0), size]))
        count = stats[-1]
        mean = stats[:-1] / count
        centered = rows - mean  # before anything is squared: exact where mean² >> variance
        variance = sum_(centered.square().sum(0)) / count
        rsd = torch.rsqrt(variance + epsilon)
        ctx.save_for_backward(centered, rsd, gamma, count)
        ctx.sum_ = sum_
        ctx.mark_non_differentiable(mean, variance)
        return _images(torch.addcmul(beta, centered, rsd * gamma), x), mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        # With y = gamma * d * r + beta, d = x - mean(x), r = 1 / sqrt(mean(d²) + epsilon):
        # dx = r * gamma * (g - mean(g) - d * r² * mean(g * d)), means over all processes.
        centered, rsd, gamma, count = ctx.saved_tensors
        rows = _rows(gradients[0]).to(gamma.dtype)
        sums, dots = rows.sum(0), (rows * centered).sum(0)
        means = ctx.sum_(torch.cat([sums, dots])) / count
        first, second = means.split(len(sums))
        dx = (rows - first - centered * (rsd.square() * second)) * (rsd * gamma)
        # gamma's and beta's are summed over the processes with all other gradients.
        return _images(dx, gradients[0]), dots * rsd, sums, None, None


def _rows(x: Tensor) -> Tensor:
    return channels_last(x).permute(0, 2, 3, 1).flatten(0, 2)


def _images(rows: Tensor, like: Tensor) -> Tensor:
    """Returns rows (pixels, C) as images (N, C, H, W) in memory of their own, no view."""
    images = torch.empty_like(like, memory_format=torch.channels_last)
    _rows(images).copy_(rows)
    return images


def batch_norm(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    moving: tuple[Tensor, Tensor],
    momentum: float,
    epsilon: float,
    sum_: Sum,
) -> Tensor:
    """As `torch_kernels.batch_norm`, over the images of all processes.

    Args:
        x: Shape (N, C, H, W), this process's images.
        gamma: Scale, shape (C,), or None.
        beta: Shift, shape (C,), or None.
        moving: Mean and variance, shape (C,) each, changed in place.
        momentum: Share of the old value.
        epsilon: Added to the variance.
        sum_: Replaces a tensor by its sum over all processes.
    """
    gamma = torch.ones_like(moving[0]) if gamma is None else gamma
    beta = torch.zeros_like(moving[0]) if beta is None else beta
    y, mean, variance = _SyncBatchNorm.apply(x, gamma, beta, epsilon, sum_)
    with torch.no_grad():
        moving[0].lerp_(mean, 1 - momentum)
        moving[1].lerp_(variance, 1 - momentum)
    normalized: Tensor = y
    return normalized
