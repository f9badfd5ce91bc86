"""The data sets: raw images and labels from files, archives, the network or a generator."""

from kerasnorm.data.dataset import Dataset, Split
from kerasnorm.data.sources import load

__all__ = ["Dataset", "Split", "load"]
