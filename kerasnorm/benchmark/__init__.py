"""The race between the training engines."""
