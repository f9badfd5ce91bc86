"""Training engines: one interface, native for torch and TensorFlow, portable for all."""
