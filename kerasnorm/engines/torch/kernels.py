"""Tensor functions that PyTorch lacks, or computes more slowly or less exactly than possible.

All take 4-D tensors as (N, C, H, W) in channels-last memory, on which oneDNN and cuDNN are fastest;
`torch.autograd` carries their gradients.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def channels_last(x: Tensor) -> Tensor:
    """Returns x (N, C, H, W) in channels-last memory; x itself if it already is."""
    return x.contiguous(memory_format=torch.channels_last)


def _clear(x: Tensor, positions: Tensor) -> None:
    """Sets the values at positions of the memory to 0; `index_fill_` takes 1.5 times as long."""
    memory = (x.permute(0, 2, 3, 1) if x.dim() == 4 else x).view(-1)
    memory.index_put_((positions,), x.new_zeros(()))


def _rows(x: Tensor) -> Tensor:
    """Returns x (N, C, H, W) as (N, H * W, C), a view if its memory is channels-last."""
    return channels_last(x).permute(0, 2, 3, 1).flatten(1, 2)


class _ZeroAt(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, positions: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        ctx.positions = positions
        _clear(x, positions)
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        memory = torch.channels_last if gradients[0].dim() == 4 else torch.contiguous_format
        gradient = gradients[0].clone(memory_format=memory)
        _clear(gradient, ctx.positions)
        return gradient, None


zero_at_ = _ZeroAt.apply  # sets a tensor to 0 at positions of its memory, in place


# PyTorch's batch norm on CPUs computes channels that do not fill a vector one by one, at a tenth of
# the speed: 12 channels cost 15 ms where 16 cost 1.7 ms.
LANES = 16
# mean² / (variance + epsilon) up to which E[x²] - E[x]² is exact enough: float32 rounds E[x²] by
# some 1e-7 of itself, so the variance is off by 1e-4 of itself at most. NaN is not below it.
SAFE_RATIO = 1e3


def _sums(rows: Tensor) -> Tensor:
    """Sums rows (N, pixels, C) over the pixels, (N, C); 64 pixels at once, as C is a short row."""
    count, pixels, channels = rows.shape
    folded = 64 if pixels % 64 == 0 else 1
    sums = rows.reshape(count, pixels // folded, folded * channels).sum(1)
    return sums.view(count, folded, channels).sum(1)


def _group_means(sums: Tensor, groups: int, pixels: int) -> Tensor:
    """Turns sums over pixels (N, C) into means over each group of channels, (N, 1, C)."""
    count, channels = sums.shape
    means = sums.view(count, groups, -1).sum(2, keepdim=True) / (pixels * channels // groups)
    return means.expand(count, groups, channels // groups).reshape(count, 1, channels)


class _GroupNorm(Function):
    """Returns the normalized x, and mean and biased variance (N, 1, C), the same in a group."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, groups: int, gamma: Tensor, beta: Tensor, epsilon: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows = _rows(x)
        mean = _group_means(_sums(rows), groups, rows.shape[1])
        centered = rows - mean
        y = torch.empty_like(x, memory_format=torch.channels_last)
        written = torch.mul(centered, centered, out=_rows(y))
        variance = _group_means(_sums(written), groups, rows.shape[1])
        inverse_std = torch.rsqrt(variance + epsilon)
        torch.addcmul(beta, centered, inverse_std * gamma, out=written)
        ctx.save_for_backward(centered, inverse_std, gamma)
        ctx.groups = groups
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor, Tensor, None]:
        # With y = gamma * d * r + beta, d = x - mean(x), r = 1 / sqrt(mean(d²) + epsilon):
        # dx = r * (gamma * g - mean(gamma * g) - d * r² * mean(gamma * g * d)).
        centered, inverse_std, gamma = ctx.saved_tensors
        gradient = channels_last(gradients[0])
        rows, pixels = _rows(gradient), centered.shape[1]
        dx = torch.empty_like(gradient)
        written = torch.mul(rows, centered, out=_rows(dx))
        sums, dots = _sums(rows), _sums(written)
        first = _group_means(sums * gamma, ctx.groups, pixels)
        second = _group_means(dots * gamma, ctx.groups, pixels)
        torch.addcmul(inverse_std * -first, centered, inverse_std.pow(3) * -second, out=written)
        written.addcmul_(rows, inverse_std * gamma)
        return dx, None, (dots * inverse_std.squeeze(1)).sum(0), sums.sum(0), None


class _NativeGroupNorm(Function):
    """Returns what PyTorch's own group norm does: y, mean and 1 / std (N, groups).

    On a CPU PyTorch's backward pass ends the process where the gradient of the scale is asked for
    and that of x is not, as in a network that begins with a norm, or behind frozen layers. Here it
    always computes both.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, groups: int, gamma: Tensor, beta: Tensor, epsilon: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, (count, channels, *size) = channels_last(x), x.shape
        ctx.sizes = count, channels, math.prod(size), groups
        y, mean, inverse_std = torch.native_group_norm(x, gamma, beta, *ctx.sizes, epsilon)
        ctx.save_for_backward(x, mean, inverse_std, gamma)
        ctx.mark_non_differentiable(mean, inverse_std)
        return y, mean, inverse_std

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor, Tensor, None]:
        dx, dgamma, dbeta = torch.ops.aten.native_group_norm_backward(
            channels_last(gradients[0]), *ctx.saved_tensors, *ctx.sizes, (True, True, True)
        )
        return dx, None, dgamma, dbeta, None


def group_norm(x: Tensor, groups: int, gamma: Tensor, beta: Tensor, epsilon: float) -> Tensor:
    """Normalizes x (N, C, H, W) over (H, W, C / groups); Wu & He, arXiv 1803.08494.

    PyTorch's channels-last kernel for CPUs takes the variance as E[x²] - E[x]², whose relative
    error grows with mean² / variance. It is the fastest, so its result is used if its mean and
    standard deviation rule out a visible error; otherwise, and on accelerators, the mean is
    subtracted before anything is squared.
    """
    if x.device.type == "cpu":
        y: Tensor
        y, mean, inverse_std = _NativeGroupNorm.apply(x, groups, gamma, beta, epsilon)
        if bool(((mean * inverse_std).square() <= SAFE_RATIO).all()):
            return y
    y, _, _ = _GroupNorm.apply(x, groups, gamma, beta, epsilon)
    return y


Sum = Callable[[Tensor], Tensor]


def batch_norm(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    moving: tuple[Tensor, Tensor],
    momentum: float,
    epsilon: float,
    sum_: Sum | None = None,
) -> Tensor:
    """Normalizes x (N, C, H, W) over (N, H, W) and updates the moving statistics as Keras does.

    moving = momentum * moving + (1 - momentum) * batch, with the biased variance; PyTorch's own
    update takes the unbiased one. Ioffe & Szegedy, arXiv 1502.03167. All statistics and
    parameters are (C,); the moving mean and variance change in place. `sum_` replaces a tensor by
    its sum over all processes, whose images are then normalized together.
    """
    if sum_ is None:
        y, mean, biased = _normalize_batch(x, gamma, beta, epsilon)
    else:
        gamma = torch.ones_like(moving[0]) if gamma is None else gamma
        beta = torch.zeros_like(moving[0]) if beta is None else beta
        y, mean, biased = _SyncBatchNorm.apply(x, gamma, beta, epsilon, sum_)
    move_statistics(moving, (mean, biased), momentum)
    return y


def move_statistics(
    moving: tuple[Tensor, Tensor], batch: tuple[Tensor, Tensor], momentum: float
) -> None:
    """Moves the mean and variance (C,) towards those of a batch, in place."""
    with torch.no_grad():
        for old, new in zip(moving, batch, strict=True):
            old.lerp_(new, 1 - momentum)


def _normalize_batch(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the normalized batch, and its mean and biased variance, (C,) each."""
    images, channels, height, width = x.shape
    full = torch.promote_types(x.dtype, torch.float32)
    has_affine = gamma is not None and beta is not None
    if x.device.type == "cpu" and channels % LANES and has_affine:
        # The whole batch as one tall image, each channel a group.
        tall = _rows(x.to(full)).reshape(1, images * height, width, channels).permute(0, 3, 1, 2)
        y, mean, variance = _GroupNorm.apply(tall, channels, gamma, beta, epsilon)
        y = y.permute(0, 2, 3, 1).reshape(images, height, width, channels).permute(0, 3, 1, 2)
        return y.to(x.dtype), mean.flatten(), variance.flatten()
    count = images * height * width
    mean, variance = (torch.zeros(channels, dtype=full, device=x.device) for _ in range(2))
    # With a momentum of 1, `variance` becomes the batch's own, unbiased.
    y = torch.batch_norm(x, gamma, beta, mean, variance, True, 1.0, epsilon, True)
    biased = variance * ((count - 1) / count) if count > 1 else torch.zeros_like(variance)
    return y, mean, biased


class _SyncBatchNorm(Function):
    """Returns the normalized x, and mean and biased variance, (C,) each, over all processes."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, epsilon: float, sum_: Sum
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows = _rows(x).flatten(0, 1).to(gamma.dtype)
        size = torch.full((1,), float(len(rows)), dtype=rows.dtype, device=rows.device)
        stats = sum_(torch.cat([rows.sum(0), size]))
        count = stats[-1]
        mean = stats[:-1] / count
        centered = rows - mean  # before anything is squared: exact even if mean² >> variance
        variance = sum_(centered.square().sum(0)) / count
        inverse_std = torch.rsqrt(variance + epsilon)
        ctx.save_for_backward(centered, inverse_std, gamma, count)
        ctx.sum_ = sum_
        ctx.mark_non_differentiable(mean, variance)
        return _images(torch.addcmul(beta, centered, inverse_std * gamma), x), mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        # With y = gamma * d * r + beta, d = x - mean(x), r = 1 / sqrt(mean(d²) + epsilon):
        # dx = r * gamma * (g - mean(g) - d * r² * mean(g * d)), means over all processes.
        centered, inverse_std, gamma, count = ctx.saved_tensors
        rows = _rows(gradients[0]).flatten(0, 1).to(gamma.dtype)
        sums, dots = rows.sum(0), (rows * centered).sum(0)
        means = ctx.sum_(torch.cat([sums, dots])) / count
        first, second = means.split(len(sums))
        dx = (rows - first - centered * (inverse_std.square() * second)) * (inverse_std * gamma)
        # The gradients of gamma and beta are summed over the processes with all others.
        return _images(dx, gradients[0]), dots * inverse_std, sums, None, None


def _images(rows: Tensor, like: Tensor) -> Tensor:
    """Returns rows (pixels, C) as images (N, C, H, W) in memory of their own, not a view."""
    images = torch.empty_like(like, memory_format=torch.channels_last)
    _rows(images).flatten(0, 1).copy_(rows)
    return images


def standardize_kernel(kernel: Tensor, epsilon: float) -> Tensor:
    """Does what `kerasnorm.layers.standardize_kernel` does, for a kernel (out, in, h, w)."""
    fan_in = kernel[0].numel()
    centered = kernel - kernel.mean((1, 2, 3), keepdim=True)
    variance = centered.square().mean((1, 2, 3), keepdim=True)
    return centered * torch.rsqrt(variance * fan_in + epsilon)
