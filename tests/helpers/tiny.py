"""Small data and configs that train in a moment."""

import functools

import keras
import numpy as np

import kerasnorm
from kerasnorm.config import resolve
from kerasnorm.data.shapes import shapes

WIDTHS = [4] * 10
TINY = {
    "data": "shapes",
    "train_size": 60,
    "test_size": 20,
    "widths": WIDTHS,
    "epochs": 2,
    "batch_size": 16,
    "device": "cpu",
}

# Trains, and draws no pictures.
train = functools.partial(kerasnorm.fit, plots=False)


def config(**overrides):
    return resolve(TINY | {"backend": keras.backend.backend()} | overrides)


def dataset(train=60, test=20):
    return shapes(train, test)


class Listener:
    """Remembers the steps that an engine tells of, and the running mean of the loss."""

    def __init__(self):
        self.begun, self.ended, self.losses = [], [], []

    def on_batch_begin(self, step):
        self.begun.append(step)

    def on_batch_end(self, step, logs):
        self.ended.append(step)
        self.losses.append(logs["loss"])


def assert_same_epoch(*engines, epoch=0):
    """Trains two engines for an epoch and compares what they tell of it."""
    told = Listener(), Listener()
    scores = [e.train_epoch(epoch, t) for e, t in zip(engines, told, strict=True)]
    assert np.allclose(told[0].losses, told[1].losses, rtol=1e-4)
    assert np.allclose(*scores, rtol=1e-4)
