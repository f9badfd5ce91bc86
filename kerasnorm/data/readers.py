"""Reads a data set from a path, whatever of the known layouts lies there."""

import zipfile
from pathlib import Path

from kerasnorm.data import arrays, cifar, folders
from kerasnorm.data.checks import parsing
from kerasnorm.data.dataset import Dataset

LAYOUTS = (
    "a folder cifar-10-batches-py, cifar-10-batches-bin or cifar-100-python, or its .tar or "
    ".tar.gz; an .npz file; a folder of IDX files; or a folder of class folders of images"
)


def read(path: Path) -> Dataset:
    """Returns the data set at a path; what lies there decides, not its name.

    A folder is taken for an official one if it has a file of that layout, else for class folders;
    a file for an `.npz` if it is a zip file, else for an official archive.

    Raises:
        DataError: Nothing is there, or it is damaged, hostile, or not what a classifier can learn
            from.
    """
    if path.is_dir():
        if layout := cifar.layout_of(path):
            return cifar.read_folder(path, layout)
        if arrays.is_idx_folder(path):
            return arrays.read_idx_folder(path)
        return folders.read_class_folders(path)
    with parsing(path, LAYOUTS):
        zipped = zipfile.is_zipfile(path)
    if zipped or path.suffix == ".npz":
        return arrays.read_npz(path)
    return cifar.read_tar(path)
