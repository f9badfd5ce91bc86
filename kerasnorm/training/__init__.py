"""One run: from a config to a trained, saved and measured model."""
