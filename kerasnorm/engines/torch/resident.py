"""Training data that stay on the accelerator, and the training step as one CUDA graph.

A step on a GPU takes less time than Python needs to launch its operations. The images are
therefore kept on the device as uint8, the order and the random numbers of an epoch's augmentation
are copied when it begins, and a step (gather, augment, forward, backward, update) is recorded once
and replayed.
"""

from collections.abc import Callable
from dataclasses import fields

import numpy as np
import torch
from torch import Tensor

from kerasnorm.data.augment import LUMA, Augmentation, Draws, hole_mask, reflect
from kerasnorm.data.batches import Batches

WARM_UP = 3  # steps before a recording, as PyTorch's guide to CUDA graphs advises


class ResidentData:
    """The images, labels, order and draws of an epoch as tensors on a device."""

    def __init__(self, batches: Batches, device: torch.device) -> None:
        self.batches = batches
        self.device = device
        self.images = torch.from_numpy(np.asarray(batches.split.images)).to(device)
        self.labels = torch.from_numpy(batches.split.labels).to(device)
        self.position = torch.zeros((), dtype=torch.long, device=device)
        self.epoch: dict[str, Tensor] = {}
        augmentation = batches.augmentation
        self.augment = None
        if augmentation is not None and augmentation.is_active:
            self.augment = DeviceAugmentation(augmentation, device)

    def begin(self, epoch: int) -> None:
        """Copies the order and the draws of an epoch to the device, always to the same memory."""
        order, size = self.batches.order(epoch), self.batches.batch_size
        fresh = {"order": torch.from_numpy(order).to(self.device)}
        if self.augment is not None:
            draw = self.augment.augmentation.draw
            parts = [order[at : at + size] for at in range(0, len(order), size)]
            draws = [draw(part, epoch, step) for step, part in enumerate(parts)]
            for field in fields(Draws):
                numbers = np.concatenate([getattr(one, field.name) for one in draws])
                fresh[field.name] = torch.from_numpy(numbers).to(self.device)
        for name, tensor in fresh.items():
            self.epoch.setdefault(name, torch.empty_like(tensor)).copy_(tensor)
        self.position.zero_()

    def take(self, count: int) -> tuple[Tensor, Tensor]:
        """Returns the next images (count, H, W, C) and labels (count,), and moves on.

        Nothing is read back from the device, so that a CUDA graph can record it. Beyond the end of
        the epoch, which the steps before a recording may pass, it starts again.
        """
        places = (self.position + torch.arange(count, device=self.device)) % len(self.labels)
        self.position.add_(count)
        draws = {name: tensor.index_select(0, places) for name, tensor in self.epoch.items()}
        indices = draws.pop("order")
        images, labels = self.images.index_select(0, indices), self.labels.index_select(0, indices)
        return self.augment(images, draws) if self.augment else images, labels


class RecordedStep:
    """A training step as a CUDA graph.

    Recording takes the step a few times; the caller must restore what it changes. A step copies
    nothing between host and device.
    """

    def __init__(self, step: Callable[[], Tensor]) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                step()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.result = step()

    def __call__(self) -> Tensor:
        """Starts the step on the device, and returns its result, which the next call overwrites."""
        self.graph.replay()
        return self.result


class DeviceAugmentation:
    """The augmentation of `kerasnorm.data.augment` as PyTorch calls on a device.

    NumPy draws the same random numbers. The calls neither copy from the host nor have shapes that
    depend on the numbers, so that a CUDA graph can record them.
    """

    def __init__(self, augmentation: Augmentation, device: torch.device) -> None:
        self.augmentation = augmentation
        self.config = augmentation.config
        height, width, channels = augmentation.image_shape
        self.rows, self.columns = (torch.arange(size, device=device) for size in (height, width))
        self.fill = torch.from_numpy(augmentation.fill).to(device)
        luma = LUMA if channels == 3 else np.full(channels, 1 / channels, np.float32)
        self.luma = torch.from_numpy(luma).to(device)

    def __call__(self, images: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """Returns the augmented images, uint8, (N, H, W, C); the draws have one row per image."""
        images = self._flip_and_move(images, draws["flip"], draws["offset"])
        if self.config.shift_scale_rotate > 0:
            hit = draws["is_affine"][:, None, None, None]
            images = torch.where(hit, self._warp(images, draws["affine"]), images)
        if self.config.cutout > 0:
            mask = hole_mask(self.rows, self.columns, draws["hole"], self.config.cutout_size)
            images = torch.where(mask, self.fill, images)
        if self.config.gray > 0:
            gray = (images.float() * self.luma).sum(-1, keepdim=True).round().to(torch.uint8)
            images = torch.where(draws["gray"][:, None, None, None], gray, images)
        return images

    def _flip_and_move(self, images: Tensor, flip: Tensor, offset: Tensor) -> Tensor:
        height, width = images.shape[1:3]
        rows = reflect(self.rows - offset[:, :1], height)
        columns = reflect(self.columns - offset[:, 1:], width)
        columns = torch.where(flip[:, None], width - 1 - columns, columns)
        return _pick(images, rows[:, :, None], columns[:, None, :])

    def _warp(self, images: Tensor, affine: Tensor) -> Tensor:
        """Samples images through affine maps (N, 2, 3), bilinear, edges reflected."""
        height, width = images.shape[1:3]
        middle = (height - 1) / 2, (width - 1) / 2
        down, across = self.rows.float()[:, None] - middle[0], self.columns.float() - middle[1]
        (row, row_weight), (column, column_weight) = (
            _split(
                affine[:, axis, 0, None, None] * down
                + affine[:, axis, 1, None, None] * across
                + (affine[:, axis, 2, None, None] + middle[axis])
            )
            for axis in (0, 1)
        )
        out = torch.zeros(images.shape, device=images.device)
        for lower in (0, 1):
            for right in (0, 1):
                share = (1 - lower - row_weight).abs() * (1 - right - column_weight).abs()
                rows, columns = reflect(row + lower, height), reflect(column + right, width)
                out += share[..., None] * _pick(images, rows, columns)
        return out.round().to(torch.uint8)


def _split(positions: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the integer part, int64, and the fraction of positions."""
    base = positions.floor()
    return base.long(), positions - base


def _pick(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Returns the pixels (N, H, W, C) at rows and columns that broadcast to (N, H, W)."""
    sample = torch.arange(len(images), device=images.device)[:, None, None]
    return images[sample, rows, columns]
