"""Keras's settings of the whole process, kept out of what this package computes."""

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def stock_keras(function: Callable[P, T]) -> Callable[P, T]:
    """Returns the function, run under the settings that Keras ships with.

    A user's keras.json or program may set others for the whole process: the type of floats, the
    dtype policy, the layout of images, epsilon. Layers here name their own; this is for what takes
    them from nowhere else: the dtype policy of a model, the type of a learning rate, operations in
    the graph of a model that a user saved. The user's settings are put back.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        from keras import config

        settings = (
            (config.floatx, config.set_floatx, "float32"),
            (config.dtype_policy, config.set_dtype_policy, "float32"),
            (config.image_data_format, config.set_image_data_format, "channels_last"),
            (config.epsilon, config.set_epsilon, 1e-7),
        )
        with ExitStack() as restored:
            # All are read before one is put: Keras makes the policy of the floats' type at first.
            for put, own in [(put, get()) for get, put, _ in settings]:
                restored.callback(put, own)
            for _, put, stock in settings:
                put(stock)
            return function(*args, **kwargs)

    return run
