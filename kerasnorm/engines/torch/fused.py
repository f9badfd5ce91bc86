"""The fused norms of `kerasnorm.engines.fused` as functions of PyTorch."""

import ctypes
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from kerasnorm.engines.fused import ACTIVATIONS, SOURCE, Compiled, compiled
from kerasnorm.engines.torch.kernels import channels_last

TYPES = (torch.float32, torch.bfloat16)


class _Call(ctypes.Structure):
    """`Call` of the source."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("images", "pixels", "channels", "groups", "threads")),
        ("epsilon", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("x", "residual", "gamma", "beta", "y")),
        *((name, ctypes.c_void_p) for name in ("mean", "inverse", "rest", "variance", "dropped")),
        ("drops", ctypes.c_int64),
        ("scale", ctypes.c_double),
    )


class _Back(ctypes.Structure):
    """`Back` of the source."""

    _fields_ = (
        ("call", _Call),
        *((name, ctypes.c_void_p) for name in ("gradient", "dx", "dgamma", "dbeta")),
    )


@functools.cache
def library() -> Compiled | None:
    """Returns the compiled source, opened as its functions; None where it cannot be compiled.

    Its OpenMP is the one that PyTorch has loaded: with two, threads would fight for the cores. So
    the linker does not name one.
    """
    return compiled(open_=lambda path: ctypes.CDLL(str(path)))


@dataclass(frozen=True)
class Norm:
    """A batch norm, or a group norm, as the fused functions compute it."""

    groups: int  # number of groups of channels; 0 for statistics of each channel over the batch
    gamma: Tensor | None  # scale, float32, (C,); None for 1
    beta: Tensor | None  # shift, float32, (C,); None for 0
    epsilon: float  # added to the variance
    # Receives mean and biased variance of a batch, (C,) each.
    note: Callable[[Tensor, Tensor], None] | None = None
    # Says of a batch norm whether it uses the batch's own statistics now.
    is_batch: Callable[[], bool] = lambda: True


def can_compute(norm: Norm, x: Tensor, residual: Tensor | None = None) -> bool:
    """Says whether `normalize` takes these tensors."""
    parts = [part for part in (norm.gamma, norm.beta) if part is not None]
    return (
        x.device.type == "cpu"
        and x.dtype in TYPES
        and x.numel() > 0
        and all(part.dtype == torch.float32 for part in parts)
        and (residual is None or (residual.shape == x.shape and residual.dtype == x.dtype))
    )


def normalize(
    norm: Norm,
    x: Tensor,
    residual: Tensor | None = None,
    *,
    before: str = "",
    after: str = "",
    dropped: Tensor | None = None,
    rate: float = 0.0,
) -> Tensor:
    """Returns residual + dropout(after(norm(before(x)))).

    Statistics are float32, from sums in float64; the mean is subtracted before anything is squared.
    `x` (N, C, H, W) is float32 or bfloat16, and so is `residual`, if there is one. `before` or
    `after` must be "" or "linear", and the other is one of `ACTIVATIONS`. `dropped` holds the
    positions in the memory of x, channels last, ascending, int64, of what a dropout of this rate
    drops.
    """
    gamma, beta = (
        torch.full(x.shape[1:2], number) if part is None else part
        for part, number in ((norm.gamma, 1.0), (norm.beta, 0.0))
    )
    numbers = (ACTIVATIONS.index(before or "linear"), ACTIVATIONS.index(after or "linear"))
    dropping = {"dropped": dropped, "drops": 0 if dropped is None else len(dropped)}
    dropping["scale"] = 1 / (1 - rate)
    y, mean, variance = _Normalize.apply(x, gamma, beta, residual, norm, numbers, dropping)
    if norm.note is not None:
        norm.note(mean, variance)
    return y


def _run(function: str, argument: ctypes.Structure, x: Tensor, numbers: tuple[int, int]) -> None:
    found = library()
    is_half = int(x.dtype == torch.bfloat16)
    if found is None or getattr(found.opened, function)(ctypes.byref(argument), is_half, *numbers):
        raise NotImplementedError(f"{SOURCE.name} has no {function} for activations {numbers}")


def _call(x: Tensor, norm: Norm, **parts: Any) -> _Call:
    count, channels, height, width = x.shape
    return _Call(
        *(count, height * width, channels, norm.groups, torch.get_num_threads(), norm.epsilon),
        x=x.data_ptr(),
        **{
            name: part.data_ptr() if isinstance(part, Tensor) else part
            for name, part in parts.items()
        },
    )


class _Normalize(Function):
    """Returns the output, and of a batch norm the mean and the biased variance, (C,) each."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gamma: Tensor,
        beta: Tensor,
        residual: Tensor | None,
        norm: Norm,
        numbers: tuple[int, int],
        dropping: dict[str, Any],
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, gamma, beta = channels_last(x), gamma.contiguous(), beta.contiguous()
        residual = None if residual is None else channels_last(residual)
        y = torch.empty_like(x)
        shape = (len(x), norm.groups) if norm.groups else (x.shape[1],)
        mean, inverse, rest, variance = torch.empty(4, *shape)
        stats = {"mean": mean, "inverse": inverse, "rest": rest}
        affine = {"gamma": gamma, "beta": beta}
        outer = {"residual": residual, "y": y, "variance": variance}
        call = _call(x, norm, **outer, **stats, **affine, **dropping)
        _run("kerasnorm_normalize", call, x, numbers)
        ctx.save_for_backward(x, *affine.values(), *stats.values())
        ctx.norm, ctx.numbers, ctx.dropping = norm, numbers, dropping
        ctx.has_residual = residual is not None
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, gamma, beta, mean, inverse, rest = ctx.saved_tensors
        gradient = channels_last(gradients[0])
        dx, dgamma, dbeta = torch.empty_like(x), torch.empty_like(gamma), torch.empty_like(beta)
        saved = {"gamma": gamma, "beta": beta, "mean": mean, "inverse": inverse, "rest": rest}
        call = _call(x, ctx.norm, **saved, **ctx.dropping)
        parts = (gradient, dx, dgamma, dbeta)
        back = _Back(call, *(part.data_ptr() for part in parts))
        _run("kerasnorm_differentiate", back, x, ctx.numbers)
        return dx, dgamma, dbeta, gradients[0] if ctx.has_residual else None, None, None, None
