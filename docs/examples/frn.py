"""Filter response normalization, as a user's own norm: Singh & Krishnan, arXiv 1911.09737.

kerasnorm fit --network docs/examples/resnet20.py:build --norm docs/examples/frn.py:FRN
"""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="examples")
class FRN(keras.layers.Layer):
    """y = max(gamma * x / sqrt(mean(x^2 over H, W) + epsilon) + beta, tau), one of each per channel.

    The maximum takes the place of a ReLU (a thresholded linear unit, section 3.3).

    Args:
        epsilon: Added to the mean square.
        **options: Common arguments of a Keras layer, such as `name`.
    """

    def __init__(self, epsilon=1e-6, **options):
        super().__init__(**options)
        self.epsilon = epsilon

    def build(self, input_shape):
        """Creates gamma, beta and tau, of shape (C,)."""
        shape = input_shape[-1:]
        self.gamma = self.add_weight(shape=shape, initializer="ones", name="gamma")
        self.beta = self.add_weight(shape=shape, initializer="zeros", name="beta")
        self.tau = self.add_weight(shape=shape, initializer="zeros", name="tau")

    def call(self, x):
        """Normalizes images (N, H, W, C)."""
        square = ops.mean(ops.square(x), axis=(1, 2), keepdims=True)
        x = x * ops.rsqrt(square + self.epsilon)
        return ops.maximum(self.gamma * x + self.beta, self.tau)

    def get_config(self):
        """Returns the arguments that make the layer again."""
        return {**super().get_config(), "epsilon": self.epsilon}
