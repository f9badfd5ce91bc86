"""Writes a SavedModel that writes a file when it is called, and calls it.

`python -m helpers.trap MODEL FILE`.
"""

import sys

import tensorflow as tf


class Untrusted(tf.Module):
    def __init__(self, file):
        self.file = file

    @tf.function(input_signature=[tf.TensorSpec((None, 8, 8, 3), tf.float32)])
    def serve(self, x):
        tf.io.write_file(self.file, "gotcha")
        return tf.reduce_mean(x, (1, 2))


def main():
    path, file = sys.argv[1:]
    module = Untrusted(file)
    tf.saved_model.save(module, path, {"serving_default": module.serve})
    tf.saved_model.load(path).serve(tf.zeros((1, 8, 8, 3)))


if __name__ == "__main__":
    main()
