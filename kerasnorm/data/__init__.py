"""The data sets: raw images and labels from files, archives, the network or a generator."""

from kerasnorm.data.dataset import Dataset, Split
from kerasnorm.data.sources import describe_cache, load, prepare

__all__ = ["Dataset", "Split", "describe_cache", "load", "prepare"]
