"""Small data and configs that train in a moment."""

import keras

from kerasnorm.data.shapes import shapes
from kerasnorm.recipes import resolve

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
