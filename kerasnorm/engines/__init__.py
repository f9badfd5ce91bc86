"""Training engines: native ones of PyTorch and TensorFlow, and Keras's own on every backend."""
