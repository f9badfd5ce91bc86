"""What a model is and what it does: layers, receptive field, evaluation, loss surface."""
