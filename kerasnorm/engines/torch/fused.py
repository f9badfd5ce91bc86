"""Norms computed together with the activation before or after them and a residual add, on CPUs.

Apart, each of the three reads and writes every image once in the forward pass and twice in the
backward pass. `fused.cpp` does all in one go while an image is in the cache. It is compiled at the
first use, for this processor, where there is a C++ compiler; without one the parts are computed one
after the other.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from kerasnorm.engines.torch.kernels import channels_last
from kerasnorm.files import file_lock, make_folder
from kerasnorm.runtime import cache_folder

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_suffix(".cpp")
COMPILERS = ("g++", "clang++")
# A product and a sum may be contracted. Sums are not reordered, and NaN stays NaN.
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math")
PATIENCE = 300.0  # seconds that another process may compile
ACTIVATIONS = ("linear", "relu", "relu6", "silu")  # by their number in the source
TYPES = (torch.float32, torch.bfloat16)


class _Call(ctypes.Structure):
    """`Call` of the source."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("images", "pixels", "channels", "groups", "threads")),
        ("epsilon", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("x", "residual", "gamma", "beta", "y")),
        *((name, ctypes.c_void_p) for name in ("mean", "inverse", "rest", "variance")),
    )


class _Back(ctypes.Structure):
    """`Back` of the source."""

    _fields_ = (
        ("call", _Call),
        *((name, ctypes.c_void_p) for name in ("gradient", "dx", "dgamma", "dbeta")),
    )


class Library(NamedTuple):
    """The compiled source.

    Attributes:
        functions: Its functions.
        digest: Tells it from what another source, compiler or processor gives; runs with the same
            one compute the same bits.
    """

    functions: ctypes.CDLL
    digest: str


@functools.cache
def library() -> Library | None:
    """Returns the compiled source, None where it cannot be compiled."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if sys.platform != "linux" or compiler is None:
        return None
    try:
        digest = _digest(compiler)
        return Library(ctypes.CDLL(str(_compiled(compiler, digest))), digest)
    except (OSError, subprocess.SubprocessError) as error:
        words = (getattr(error, "stderr", None) or str(error)).strip()
        logger.warning(
            "Norms are computed apart from their activations, which is slower, because "
            f"{SOURCE.name} does not compile here: {words.splitlines()[0]}"
        )
        return None


def _digest(compiler: str) -> str:
    version = subprocess.run(  # noqa: S603
        [compiler, "--version"], capture_output=True, text=True, check=True
    ).stdout
    facts = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    flags = next((fact for fact in facts if fact.startswith(("flags", "Features"))), "")
    parts = (SOURCE.read_text(encoding="utf-8"), *FLAGS, version, platform.machine(), flags)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _compiled(compiler: str, digest: str) -> Path:
    """Returns the compiled source, from the cache if it is there."""
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or cache_folder() / "extensions")
    path = folder / f"kerasnorm-{digest}.so"
    if path.is_file():
        return path
    make_folder(folder)
    with file_lock(path.with_suffix(".lock"), PATIENCE), tempfile.TemporaryDirectory() as place:
        if not path.is_file():
            logger.info(f"Compiling {SOURCE.name} for this processor, once.")
            target = f"{place}/{path.name}"
            # Its OpenMP is the one that PyTorch has loaded: with two, threads would fight for the
            # cores. So the linker must not name one.
            objects = [*FLAGS, "-fopenmp", "-fPIC", "-c", str(SOURCE), "-o", f"{target}.o"]
            for words in (objects, ["-shared", f"{target}.o", "-o", target]):
                subprocess.run(  # noqa: S603
                    [compiler, *words], capture_output=True, text=True, check=True
                )
            partial = path.with_suffix(f".{os.getpid()}")
            shutil.copyfile(target, partial)
            partial.replace(path)
    return path


@dataclass(frozen=True)
class Norm:
    """A batch norm, or a group norm, as the fused functions compute it.

    Attributes:
        groups: Number of groups of channels; 0 for statistics of each channel over the batch.
        gamma: Scale, float32, (C,); None for 1.
        beta: Shift, float32, (C,); None for 0.
        epsilon: Added to the variance.
        factor: Factor of the output.
        note: Receives mean and biased variance of a batch, (C,) each.
        is_batch: Says of a batch norm whether it uses the batch's own statistics now.
    """

    groups: int
    gamma: Tensor | None
    beta: Tensor | None
    epsilon: float
    factor: float = 1.0
    note: Callable[[Tensor, Tensor], None] | None = None
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
    norm: Norm, x: Tensor, residual: Tensor | None = None, *, before: str = "", after: str = ""
) -> Tensor:
    """Returns residual + after(norm(before(x))).

    Statistics are float32, from sums in float64; the mean is subtracted before anything is squared.

    Args:
        norm: The norm.
        x: float32 or bfloat16, shape (N, C, H, W).
        residual: Of the same shape and type, or None.
        before: One of `ACTIVATIONS`; "" is "linear".
        after: Another; one of the two must be "linear".
    """
    gamma, beta = (
        torch.full(x.shape[1:2], number) if part is None else part
        for part, number in ((norm.gamma, 1.0), (norm.beta, 0.0))
    )
    if norm.factor != 1:
        gamma, beta = gamma * norm.factor, beta * norm.factor
    numbers = (ACTIVATIONS.index(before or "linear"), ACTIVATIONS.index(after or "linear"))
    y, mean, variance = _Normalize.apply(x, gamma, beta, residual, norm, numbers)
    if norm.note is not None:
        norm.note(mean, variance)
    return y


def _run(function: str, argument: ctypes.Structure, x: Tensor, numbers: tuple[int, int]) -> None:
    found = library()
    is_half = int(x.dtype == torch.bfloat16)
    if found is None or getattr(found.functions, function)(
        ctypes.byref(argument), is_half, *numbers
    ):
        raise NotImplementedError(f"{SOURCE.name} has no {function} for activations {numbers}")


def _call(x: Tensor, norm: Norm, **tensors: Tensor | None) -> _Call:
    count, channels, height, width = x.shape
    return _Call(
        *(count, height * width, channels, norm.groups, torch.get_num_threads(), norm.epsilon),
        x=x.data_ptr(),
        **{name: None if tensor is None else tensor.data_ptr() for name, tensor in tensors.items()},
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
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, gamma, beta = channels_last(x), gamma.contiguous(), beta.contiguous()
        residual = None if residual is None else channels_last(residual)
        y = torch.empty_like(x)
        shape = (len(x), norm.groups) if norm.groups else (x.shape[1],)
        mean, inverse, rest, variance = torch.empty(4, *shape)
        stats = {"mean": mean, "inverse": inverse, "rest": rest}
        affine = {"gamma": gamma, "beta": beta}
        call = _call(x, norm, residual=residual, y=y, variance=variance, **stats, **affine)
        _run("normalize", call, x, numbers)
        ctx.save_for_backward(x, *affine.values(), *stats.values())
        ctx.norm, ctx.numbers, ctx.has_residual = norm, numbers, residual is not None
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, gamma, beta, mean, inverse, rest = ctx.saved_tensors
        gradient = channels_last(gradients[0])
        dx, dgamma, dbeta = torch.empty_like(x), torch.empty_like(gamma), torch.empty_like(beta)
        call = _call(x, ctx.norm, gamma=gamma, beta=beta, mean=mean, inverse=inverse, rest=rest)
        parts = (gradient, dx, dgamma, dbeta)
        back = _Back(call, *(part.data_ptr() for part in parts))
        _run("differentiate", back, x, ctx.numbers)
        return dx, dgamma, dbeta, gradients[0] if ctx.has_residual else None, None, None
