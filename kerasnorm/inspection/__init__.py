"""What a model is and how well it does: layers, receptive field, scores."""
