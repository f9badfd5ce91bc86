"""The hand-written contender: the network as a PyTorch module, and a training loop for it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  (its usual name)

from kerasnorm.config import SKELETON, Config, ModelConfig
from kerasnorm.data.batches import Batches
from kerasnorm.errors import ConfigError
from kerasnorm.norms import EPSILON, NORMS

ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU, "elu": nn.ELU}


class StandardizedConv(nn.Conv2d):
    """A convolution with a standardized kernel; Qiao et al., arXiv 1903.10520."""

    def forward(self, x: Any) -> Any:
        """Convolves x (N, C, H, W)."""
        kernel = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        variance = kernel.square().mean((1, 2, 3), keepdim=True)
        kernel = kernel * torch.rsqrt(variance * kernel[0].numel() + EPSILON)
        return F.conv2d(x, kernel, padding=self.padding)


class Unit(nn.Module):
    """Convolution, norm, activation, dropout, identity add."""

    def __init__(self, config: ModelConfig, inputs: int, filters: int, size: int) -> None:
        super().__init__()
        is_transition = size == 1
        convolution = StandardizedConv if config.weight_standardization else nn.Conv2d
        steps = [convolution(inputs, filters, size, padding=size // 2, bias=False)]
        for step in config.order.removeprefix("conv-").split("-"):
            if step == "act":
                steps.append(ACTIVATIONS[config.activation]())
            elif config.norm_transitions or not is_transition:
                steps.append(_norm(config, filters))
        if config.dropout and not is_transition:
            kind = nn.Dropout if config.dropout_kind == "element" else nn.Dropout2d
            steps.append(kind(config.dropout))
        self.steps = nn.Sequential(*steps)
        self.is_added = config.residual and inputs == filters and not is_transition

    def forward(self, x: Any) -> Any:
        """Applies the unit to x (N, C, H, W)."""
        return x + self.steps(x) if self.is_added else self.steps(x)


def _norm(config: ModelConfig, channels: int) -> nn.Module:
    """Returns PyTorch's layer for a norm, chosen by its definition: this process has no Keras."""
    norm = NORMS[config.norm]
    if norm.layer is None:
        return nn.Identity()
    is_usual = norm.is_centered and norm.shift is not None and norm.final is None
    is_per_channel = "ln_affine" not in norm.fields or config.ln_affine == "channel"
    if is_usual and is_per_channel and norm.axes == (1, 2, 4):
        return nn.GroupNorm(norm.groups(config, channels), channels, EPSILON)
    if is_usual and norm.axes == (0, 1, 2, 4):
        return nn.BatchNorm2d(channels, EPSILON, 1 - config.bn_momentum)
    raise ConfigError(
        "The hand-written loop has PyTorch's BatchNorm2d and GroupNorm, with one scale and shift "
        f"per channel, which do not compute norm={config.norm!r}."
    )


class Pooling(nn.Module):
    """A 2x2 pooling: max, average, or the mean of the two."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Any) -> Any:
        """Pools float images x (N, C, H, W)."""
        if self.kind == "mean":
            return (F.max_pool2d(x, 2) + F.avg_pool2d(x, 2)) / 2
        return (F.max_pool2d if self.kind == "max" else F.avg_pool2d)(x, 2)


def network(config: ModelConfig, channels: int, classes: int) -> Any:
    """Returns the network as a `torch.nn.Sequential` that takes float images (N, C, H, W).

    Raises:
        ConfigError: The norm or activation has no layer in PyTorch that does the same.
    """
    if config.activation not in ACTIVATIONS:
        raise ConfigError(
            f"The hand-written loop knows the activations {', '.join(ACTIVATIONS)}. "
            f"Received: {config.activation}"
        )
    widths, inputs = iter(config.widths), channels
    parts: list[Any] = []
    for _, count, size in SKELETON:
        for _ in range(count):
            filters = next(widths)
            parts.append(Unit(config, inputs, filters, size))
            inputs = filters
        if size == 1:
            parts.append(Pooling(config.pooling))
    parts += [nn.AdaptiveAvgPool2d(1), nn.Conv2d(inputs, classes, 1, bias=False), nn.Flatten()]
    return nn.Sequential(*parts)


def make_loop(
    config: Config, batches: Batches, device: str, *, channels_last: bool, compiled: bool
) -> Callable[[int, Callable[[], None]], None]:
    """Returns a function that trains one epoch, and calls its listener after each step.

    It is eager unless `compiled`, and uses Adam, data in memory, and PyTorch's defaults otherwise;
    in mixed precision, autocast.
    """
    images = np.asarray(batches.split.images)
    model = network(config.model, images.shape[-1], int(batches.split.labels.max()) + 1)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = model.to(device, memory_format=layout).train()
    optimizer = torch.optim.Adam(model.parameters(), config.train.learning_rate)
    mean, std = images.mean(), images.std()
    forward = torch.compile(model) if compiled else model
    kind, is_mixed = torch.device(device).type, config.train.precision != "float32"

    def epoch(number: int, on_step: Callable[[], None]) -> None:
        order = batches.order(number)
        for step in range(batches.steps):
            raw, labels = batches.batch(number, step, order)
            x = torch.from_numpy(raw).to(device).permute(0, 3, 1, 2).float()
            x = ((x - mean) / std).contiguous(memory_format=layout)
            y = torch.from_numpy(labels).to(device).long()
            optimizer.zero_grad()
            with torch.autocast(kind, torch.bfloat16, enabled=is_mixed):
                logits = forward(x)
            loss = F.cross_entropy(logits.float(), y)
            loss.backward()
            optimizer.step()
            on_step()
        loss.item()  # an accelerator is still computing: the time of an epoch ends with its work

    return epoch
