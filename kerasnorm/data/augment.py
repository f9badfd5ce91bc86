"""Augmentation of whole batches, in two steps: draw the random numbers, then apply them.

Drawing depends on (seed, epoch, step) alone, and applying is arithmetic on uint8 images, so every
backend and engine trains on the same pixels. The order is: flip, shift-scale-rotate, translate,
cutout, gray.
"""

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from kerasnorm.config import AUGMENTATIONS, DataConfig
from kerasnorm.errors import expect

SHIFT = 0.1  # of the image's side
SCALE = 0.1
DEGREES = 15.0
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601

# Streams of random numbers that must be independent, with one number each.
ORDER_STREAM, AUGMENT_STREAM, FLIP_STREAM, DROPOUT_STREAM = 1, 2, 3, 4


def generator(*key: int) -> np.random.Generator:
    """Returns the random generator of a key such as (seed, stream, epoch, step)."""
    return np.random.Generator(np.random.PCG64(key))


@dataclass(frozen=True, eq=False)
class Draws:
    """The random numbers of one batch of N images, from which its augmentation follows."""

    flip: NDArray[np.bool_]  # whether each image is mirrored, bool (N,)
    offset: NDArray[np.int64]  # rows and columns to move by, in pixels, int (N, 2)
    # Inverse affine maps, from output to input pixels about the center, float32 (N, 2, 3).
    affine: NDArray[np.float32]
    is_affine: NDArray[np.bool_]  # which images they apply to, bool (N,)
    # Top left corner of the cutout, int (N, 2); below 0 in images without one.
    hole: NDArray[np.int64]
    gray: NDArray[np.bool_]  # whether each image becomes gray, bool (N,)

    def take(self, part: slice) -> "Draws":
        """Returns the random numbers of some of the images."""
        return Draws(*(getattr(self, field.name)[part] for field in fields(self)))


class Augmentation:
    """The augmentation of training images that a data config describes, for one image shape.

    `fill` is the mean color of the training set, which fills holes: 0 to 255 for each channel.
    `count` is the number of training images.

    Raises:
        ConfigError: A shift or hole is larger than the image allows.
    """

    def __init__(
        self,
        config: DataConfig,
        image_shape: tuple[int, int, int],
        fill: NDArray[np.float64],
        count: int,
        seed: int,
    ) -> None:
        side = min(image_shape[:2])
        if config.translate < 0:
            config = replace(config, translate=side // 8)
        shift, limit = config.translate, f"the image's side of {side} pixels"
        expect(shift < side, "translate", f"less than {limit}", shift)
        fits = config.cutout == 0 or config.cutout_size <= side
        expect(fits, "cutout_size", f"at most {limit}", config.cutout_size)
        self.config = config
        self.image_shape = image_shape
        self.fill = np.rint(fill).astype(np.uint8)
        self.seed = seed
        # The side of each image in epoch 0; Jordan, arXiv 2404.00498.
        self.first_side = generator(seed, FLIP_STREAM).integers(0, 2, count)

    @property
    def is_active(self) -> bool:
        """Whether the augmentation can change any image."""
        return any(getattr(self.config, name) for name in AUGMENTATIONS)

    def draw(self, indices: NDArray[np.int64], epoch: int, step: int) -> Draws:
        """Returns the random numbers of one step, for the images of these indices (N,)."""
        config, count = self.config, len(indices)
        height, width, _ = self.image_shape
        rng = generator(self.seed, AUGMENT_STREAM, epoch, step)
        flip = rng.random(count) < config.flip
        if config.alternating_flip:
            flip ^= (self.first_side[indices] + epoch) % 2 == 1
        is_affine = rng.random(count) < config.shift_scale_rotate
        affine = self._draw_affine(rng, count)
        reach = config.translate
        offset = rng.integers(-reach, reach + 1, (count, 2))
        room = np.array([height, width]) - min(config.cutout_size, height, width)
        hole = rng.integers(0, room + 1, (count, 2))
        hole[rng.random(count) >= config.cutout] = -1
        gray = rng.random(count) < config.gray
        return Draws(flip, offset, affine, is_affine, hole, gray)

    def _draw_affine(self, rng: np.random.Generator, count: int) -> NDArray[np.float32]:
        height, width, _ = self.image_shape
        shift = rng.uniform(-SHIFT, SHIFT, (count, 2)) * (height, width)
        scale = 1 + rng.uniform(-SCALE, SCALE, count)
        angle = np.deg2rad(rng.uniform(-DEGREES, DEGREES, count))
        cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
        rotation = np.stack([cos, -sin, sin, cos], axis=1).reshape(count, 2, 2)
        moved = -(rotation @ shift[:, :, None])
        return np.concatenate([rotation, moved], axis=2).astype(np.float32)

    def apply(self, images: NDArray[np.uint8], draws: Draws) -> NDArray[np.uint8]:
        """Returns the augmented images, (N, H, W, C), by what `draw` returned for them."""
        images = self._flip_and_move(images, draws)
        hit = np.flatnonzero(draws.is_affine)
        if hit.size:
            images[hit] = _warp(images[hit], draws.affine[hit])
        if self.config.cutout > 0:
            rows, columns = (np.arange(size) for size in self.image_shape[:2])
            mask = hole_mask(rows, columns, draws.hole, self.config.cutout_size)
            images = np.where(mask, self.fill, images)
        hit = np.flatnonzero(draws.gray)
        if hit.size:
            images[hit] = to_gray(images[hit])
        return images

    def _flip_and_move(self, images: NDArray[np.uint8], draws: Draws) -> NDArray[np.uint8]:
        height, width, _ = self.image_shape
        rows = reflect(np.arange(height) - draws.offset[:, :1], height)
        columns = reflect(np.arange(width) - draws.offset[:, 1:], width)
        columns = np.where(draws.flip[:, None], width - 1 - columns, columns)
        # Twice as fast as images[sample, rows, columns], which copies pixels of 3 bytes one by one.
        rows = rows + height * np.arange(len(images))[:, None]
        places = rows[:, :, None] * width + columns[:, None, :]
        return images.reshape(-1, images.shape[-1]).take(places, axis=0)


Numbers = NDArray[np.int64]  # or a tensor of torch


def hole_mask(rows: Numbers, columns: Numbers, hole: Numbers, size: int) -> NDArray[np.bool_]:
    """Returns the mask (N, H, W, 1) of square holes.

    `rows` (H,) and `columns` (W,) hold their numbers, `hole` the top left corners (N, 2), which are
    below 0 in images without one.
    """
    down, across = rows - hole[:, :1], columns - hole[:, 1:]
    in_rows, in_columns = (down >= 0) & (down < size), (across >= 0) & (across < size)
    is_cut = (hole[:, 0] >= 0)[:, None, None]
    return (in_rows[:, :, None] & in_columns[:, None, :] & is_cut)[..., None]


def reflect(positions: Numbers, size: int) -> Numbers:
    """Returns positions folded into 0…size-1 by reflection that does not repeat the edge pixel."""
    last = size - 1
    return last - abs(last - abs(positions) % max(2 * last, 1))


def to_gray(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns images (N, H, W, C) with every channel set to the luma (C = 3) or the mean."""
    channels = images.shape[-1]
    weights = LUMA if channels == 3 else np.full(channels, 1 / channels, np.float32)
    gray = np.rint(images.astype(np.float32) @ weights).astype(np.uint8)
    return np.repeat(gray[..., None], channels, axis=-1)


def _warp(images: NDArray[np.uint8], affine: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Returns images (N, H, W, C) sampled by affine maps (N, 2, 3), bilinear, edges reflected."""
    count, height, width, _ = images.shape
    center = np.array([(height - 1) / 2, (width - 1) / 2], np.float32)
    grid = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), axis=-1)
    relative = grid.astype(np.float32) - center  # (H, W, 2)
    source = np.einsum("nij,hwj->nhwi", affine[:, :, :2], relative)
    source += affine[:, None, None, :, 2] + center
    base = np.floor(source).astype(np.int64)
    weight = source - base  # (N, H, W, 2)
    sample = np.arange(count)[:, None, None]
    out = np.zeros(images.shape, np.float32)
    for down in (0, 1):
        for across in (0, 1):
            row = reflect(base[..., 0] + down, height)
            column = reflect(base[..., 1] + across, width)
            share = np.abs(1 - down - weight[..., 0]) * np.abs(1 - across - weight[..., 1])
            out += share[..., None] * images[sample, row, column]
    return np.rint(out).astype(np.uint8)
