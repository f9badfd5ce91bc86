"""A norm over the batch whose layer is not Keras's BatchNormalization."""

import keras


class Averaging(keras.layers.Layer):
    """A norm over the batch whose variables have the shape that is asked for."""

    def __init__(self, shape, momentum=0.9, **common):
        super().__init__(**common)
        self.shape = shape
        if momentum is not None:
            self.momentum = momentum

    def build(self, shape):
        self.gamma = self.add_weight(shape=shape[-1:], initializer="ones", name="gamma")
        self.beta = self.add_weight(shape=shape[-1:], initializer="zeros", name="beta")
        self.moving_mean = self.add_weight(
            shape=self.shape, initializer="zeros", trainable=False, name="moving_mean"
        )
        self.moving_variance = self.add_weight(
            shape=self.shape, initializer="ones", trainable=False, name="moving_variance"
        )

    def call(self, x, training=False):
        mean, variance = self.moving_mean, self.moving_variance
        if training:
            mean, variance = keras.ops.moments(x, (0, 1, 2))
            for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
                moving.assign(self.momentum * moving + (1 - self.momentum) * batch)
        return self.gamma * (x - mean) * keras.ops.rsqrt(variance + 1e-5) + self.beta
