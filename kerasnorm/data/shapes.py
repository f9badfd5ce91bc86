"""The built-in data set `shapes`: ten classes of drawn figures, generated from a seed.

It replaces CIFAR-10 where that cannot be downloaded: it has the same shape and number of classes,
is hard enough that normalization layers and seeds differ, and easy enough that a net learns in
minutes on a CPU. Every figure has its own place, size, stretch, rotation and contrast, on a
shaded, noisy ground, among small distractors that may hide a part of it. Colors depend on the class
a little: by the mean color alone about a third of the images are classified correctly.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from kerasnorm.data.dataset import Dataset, Generated, Split, channels_last

Field = NDArray[np.float32]
Draw = Callable[..., Field]  # see `_draw`

# Images are drawn in blocks, each with a generator of its own: memory stays bounded, and an image
# does not depend on how many are asked for. A multiple of ten, so that classes are balanced.
_BLOCK = 100
_DISTRACTORS = 2
# How much colors depend on the tint of their class, like the green of frogs and the blue around
# ships. Without them a small net stays at chance for minutes.
_FIGURE_TINT, _GROUND_TINT = np.float32(0.7), np.float32(0.16)


def _box(x: Field, y: Field, width: float, height: float) -> Field:
    return np.maximum(np.abs(x) - np.float32(width), np.abs(y) - np.float32(height))


def _length(x: Field, y: Field) -> Field:
    return np.asarray(np.sqrt(x * x + y * y))  # several times as fast as hypot


def _disc(x: Field, y: Field, radius: float = 0.8) -> Field:
    return _length(x, y) - np.float32(radius)


def _triangle(x: Field, y: Field) -> Field:
    slope = np.float32(np.sqrt(0.75)) * np.abs(x)
    return np.maximum(-y, slope + y / 2) - np.float32(0.5)


def _star(x: Field, y: Field) -> Field:
    # Folded into one of ten equal sectors, a five-pointed star has a single straight edge, from
    # its tip (1, 0) to the notch at radius 0.42.
    sector = np.float32(2 * np.pi / 5)
    angle = np.arctan2(y, x)
    angle = np.abs(angle - sector * np.rint(angle / sector))
    radius = _length(x, y)
    notch = 0.42 * np.exp(1j * np.pi / 5)
    normal = (notch - 1) / abs(notch - 1) / 1j
    across = radius * np.cos(angle) * np.float32(normal.real)
    along = radius * np.sin(angle) * np.float32(normal.imag)
    return across + along - np.float32(normal.real)


def _heart(x: Field, y: Field) -> Field:
    # A square and, on two adjacent sides, discs as wide as the side.
    half = 0.45
    x, y = x + np.float32(half / 2), y + np.float32(half / 2)
    discs = np.minimum(_disc(x - np.float32(half), y, half), _disc(x, y - np.float32(half), half))
    return np.minimum(discs, _box(x, y, half, half))


# Class → signed distance to the figure's edge (negative inside), for points where the figure fills
# about the unit disc. The formulas are those of constructive geometry: union is min, intersection
# max, complement the sign; distances are exact near straight edges, which is where they are used.
FIGURES: dict[str, Callable[[Field, Field], Field]] = {
    "disc": _disc,
    "ring": lambda x, y: np.abs(_disc(x, y, 0.68)) - np.float32(0.18),
    "square": lambda x, y: _box(x, y, 0.7, 0.7),
    "frame": lambda x, y: np.abs(_box(x, y, 0.58, 0.58)) - np.float32(0.15),
    "triangle": _triangle,
    "star": _star,
    "cross": lambda x, y: np.minimum(_box(x, y, 0.85, 0.24), _box(x, y, 0.24, 0.85)),
    "crescent": lambda x, y: np.maximum(_disc(x, y, 0.85), -_disc(x - np.float32(0.42), y, 0.68)),
    "bar": lambda x, y: _box(x, y, 0.9, 0.24),
    "heart": _heart,
}


def _tints() -> Field:
    """Returns a direction in color space for each class, (classes, 3, 1, 1), spread on a sphere."""
    # A Fibonacci sphere; Swinbank & Purser, Q. J. R. Meteorol. Soc. 132 (2006).
    index = np.arange(len(FIGURES)) + 0.5
    height = 1 - 2 * index / len(FIGURES)
    angle = np.pi * (1 + np.sqrt(5)) * index
    ring = np.sqrt(1 - height**2)
    tints = np.stack([ring * np.cos(angle), ring * np.sin(angle), height], axis=1)
    return tints.astype(np.float32)[:, :, None, None]


def _draw(rng: np.random.Generator, low: float, high: float, *shape: int) -> Field:
    """Returns uniform numbers of each image, shape (N, 1, 1), which broadcasts, or (N, *shape)."""
    values = rng.random((_BLOCK, *(shape or (1, 1))), dtype=np.float32)
    return np.float32(low) + np.float32(high - low) * values


def _grid(size: int) -> tuple[Field, Field]:
    """Returns x of shape (1, 1, W) and y of shape (1, H, 1) of the pixel centers, from -1 to 1."""
    centers = ((2 * np.arange(size, dtype=np.float32) + 1) / size - 1).astype(np.float32)
    return centers[None, None, :], centers[None, :, None]


def _coverage(distance: Field, pixels: Field | np.float32) -> Field:
    """Returns the share of each pixel inside the edge: anti-aliasing over one pixel."""
    return np.asarray(np.clip(np.float32(0.5) - distance * pixels, 0, 1))


def _figure_masks(draw: Draw, labels: NDArray[np.int32], size: int) -> Field:
    """Returns the coverage (N, H, W) of one figure per image, placed, stretched and turned."""
    x, y = _grid(size)
    radius, stretch, angle = draw(0.45, 0.8), draw(0.85, 1.18), draw(-np.pi, np.pi)
    reach = np.float32(1) - np.float32(0.75) * radius
    x, y = x - reach * draw(-1, 1), y - reach * draw(-1, 1)
    cos, sin = np.cos(angle) / radius, np.sin(angle) / radius
    u, v = (cos * x + sin * y) * stretch, (cos * y - sin * x) / stretch
    distance: Field = np.empty((_BLOCK, size, size), dtype=np.float32)
    for label, figure in enumerate(FIGURES.values()):
        mine = labels == label
        distance[mine] = figure(u[mine], v[mine])
    return _coverage(distance, radius * np.float32(size / 2))


def _ground(draw: Draw, size: int) -> Field:
    """Returns backgrounds (N, C, H, W), 0 to 1: a color, a slope, a soft random field."""
    x, y = _grid(size)
    color, slope = draw(0.3, 0.7, 3, 1, 1), draw(-0.2, 0.2, 2, 3, 1, 1)
    coarse = draw(-1, 1, 3, 4, 4) * draw(0, 0.2, 1, 1, 1)
    position = np.linspace(0, 3, size, dtype=np.float32)
    blend = np.maximum(0, 1 - np.abs(np.arange(4, dtype=np.float32)[:, None] - position))
    # Bilinear, and not by `@`: small products stall in a threaded BLAS on a busy machine.
    field = np.einsum("nciw,ih->nchw", np.einsum("ncij,jw->nciw", coarse, blend), blend)
    return np.asarray(field + slope[:, 0] * x[:, None] + (color + slope[:, 1] * y[:, None]))


def _paint(images: Field, mask: Field, color: Field) -> None:
    """Paints a color (N, C, 1, 1) on images (N, C, H, W), with the mask (N, H, W) as opacity."""
    layer = np.subtract(color, images)
    layer *= mask[:, None]
    images += layer


def _distractors(images: Field, draw: Draw, size: int) -> None:
    """Paints up to two specks or short strokes over the images, too small for figures."""
    x, y = _grid(size)
    for number in range(_DISTRACTORS):
        radius, angle = draw(0.05, 0.12), draw(-np.pi, np.pi)
        dx, dy = x - draw(-0.9, 0.9), y - draw(-0.9, 0.9)
        along = np.cos(angle) * dx + np.sin(angle) * dy
        across = np.cos(angle) * dy - np.sin(angle) * dx
        half = draw(0, 0.25) * (draw(0, 1) < 0.5)
        distance = _length(np.maximum(np.abs(along) - half, 0), across) - radius
        shown = draw(0, _DISTRACTORS + 1) > number + 1
        mask = _coverage(distance, np.float32(size / 2)) * shown
        _paint(images, mask, draw(0, 1, 3, 1, 1))


def _block(seed: int, split: int, number: int, size: int) -> Split:
    """Returns one block of images, a function of the arguments alone."""
    rng = np.random.Generator(np.random.PCG64([seed, split, number, size]))
    draw = partial(_draw, rng)
    classes = np.tile(np.arange(len(FIGURES), dtype=np.int32), (_BLOCK // len(FIGURES), 1))
    labels = rng.permuted(classes, axis=1).ravel()
    tint = _tints()[labels]
    images = _ground(draw, size) + _GROUND_TINT * tint
    mask = _figure_masks(draw, labels, size)
    # The figure's color: the ground's, moved by the contrast along a random direction.
    direction = draw(-1, 1, 3, 1, 1) + _FIGURE_TINT * tint
    direction /= np.abs(direction).max(axis=1, keepdims=True)
    ground = images.mean(axis=(2, 3), keepdims=True)
    direction *= np.where(np.abs(ground + direction * 0.5 - 0.5) > 0.5, -1, 1)
    _paint(images, mask * draw(0.75, 1), ground + direction * draw(0.15, 0.8, 1, 1, 1))
    _distractors(images, draw, size)
    images += draw(-1, 1, *images.shape[1:]) * draw(0.01, 0.16, 1, 1, 1)
    np.clip(images, 0, 1, out=images)
    pixels = (images * np.float32(255) + np.float32(0.5)).astype(np.uint8)
    return Split(channels_last(pixels), labels)


def _split(seed: int, split: int, count: int, size: int) -> Split:
    images = np.empty((count, size, size, 3), dtype=np.uint8)
    labels = np.empty(count, dtype=np.int32)
    for start in range(0, count, _BLOCK):
        block = _block(seed, split, start // _BLOCK, size)
        taken = slice(start, min(start + _BLOCK, count))
        images[taken] = block.images[: taken.stop - start]
        labels[taken] = block.labels[: taken.stop - start]
    return Split(images, labels)


def shapes(train: int = 5_000, test: int = 1_000, seed: int = 0, size: int = 32) -> Dataset:
    """Returns the generated data set.

    The first images are the same whatever the number of images, and every ten in a row hold each
    class once.
    """
    return Dataset(
        name="shapes",
        source=f"generated: shapes, seed {seed}, {size}x{size}",
        class_names=tuple(FIGURES),
        train=_split(seed, 0, train, size),
        test=_split(seed, 1, test, size),
    )


SOURCES = (Generated("shapes", shapes, train_size=5_000, test_size=1_000),)
