"""What a data set holds, by which a run knows its data wherever they lie."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerasnorm.data.stored import Images, chunks
from kerasnorm.errors import listed

PARTS = ("images", "labels")  # of a split
SHOWN = 10  # names of classes that a message lists


@dataclass(frozen=True)
class Content:
    """What a data set held when it was loaded, before images were held out or equalized."""

    class_names: tuple[str, ...]  # one name per class, in label order
    image_shape: tuple[int, ...]  # shape (H, W, C) of one image
    # Number of images per class, in label order, of every split.
    counts: Mapping[str, tuple[int, ...]]
    # Checksum of the images and of the labels of every split, in their order; the keys are such as
    # "test images".
    sha256: Mapping[str, str]

    @classmethod
    def read(cls, document: Any) -> "Content | None":
        """Returns the content that a JSON document holds, None where it holds none."""
        try:
            return cls(
                tuple(map(str, document["class_names"])),
                tuple(map(int, document["image_shape"])),
                {name: tuple(map(int, counts)) for name, counts in document["counts"].items()},
                {
                    f"{name} {part}": str(document["sha256"][f"{name} {part}"])
                    for name in document["counts"]
                    for part in PARTS
                },
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            return None

    def differences(self, other: "Content") -> list[str]:
        """Returns in words what another content has in the place of what this one has."""
        found = []
        if self.class_names != other.class_names:
            before, now = self.class_names, other.class_names
            if len(before) > SHOWN and {*before} != {*now}:  # only those that differ
                before = tuple(name for name in self.class_names if name not in now)
                now = tuple(name for name in now if name not in self.class_names)
            found.append(f"the classes {listed(now, SHOWN)} instead of {listed(before, SHOWN)}")
        if self.image_shape != other.image_shape:
            found.append(f"images of shape {other.image_shape} instead of {self.image_shape}")
        for name in {**self.counts, **other.counts}:
            old, new = (content.counts.get(name, ()) for content in (self, other))
            if sum(old) != sum(new):
                found.append(f"{sum(new):,} {name} images instead of {sum(old):,}")
            elif old != new:
                found.append(f"other numbers of {name} images per class")
            else:
                keys = [f"{name} {part}" for part in PARTS]
                found += [f"other {key}" for key in keys if self.sha256[key] != other.sha256[key]]
        return found


def checksum(array: Images | NDArray[np.int32]) -> str:
    """Returns the SHA-256 of the images or labels of a split, in their order."""
    found = hashlib.sha256()
    for chunk in chunks(array):
        found.update(np.ascontiguousarray(array[chunk]).data)
    return found.hexdigest()


def digests(images: NDArray[np.uint8]) -> list[bytes]:
    """Returns a hash of the pixels of each image (N, H, W, C)."""
    return [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images]
