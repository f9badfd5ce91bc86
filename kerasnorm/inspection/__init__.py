"""Inspection of models: layers, receptive fields, graphs, kinds of outputs, scores."""
