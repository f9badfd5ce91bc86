"""Gradients on whichever backend Keras runs."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np


def gradient(function: Callable[..., Any], *arrays: np.ndarray) -> list[np.ndarray]:
    """Returns the gradient of a scalar function of tensors, with respect to each of them."""
    tensors = [keras.ops.convert_to_tensor(array) for array in arrays]
    if keras.backend.backend() == "torch":
        import torch

        for tensor in tensors:
            tensor.requires_grad_(True)
        found = torch.autograd.grad(function(*tensors), tensors)
    else:
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(tensors)
            value = function(*tensors)
        found = tape.gradient(value, tensors)
    return [keras.ops.convert_to_numpy(array) for array in found]


def parameter_gradients(function: Callable[[], Any], variables: list[Any]) -> list[np.ndarray]:
    """Returns the gradient of a scalar function with respect to Keras variables."""
    values = [variable.value for variable in variables]
    if keras.backend.backend() == "torch":
        import torch

        found = torch.autograd.grad(function(), values)
    else:
        import tensorflow as tf

        with tf.GradientTape() as tape:
            value = function()
        found = tape.gradient(value, values)
    return [keras.ops.convert_to_numpy(array) for array in found]
