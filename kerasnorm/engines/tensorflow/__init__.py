"""The native engine of TensorFlow."""
