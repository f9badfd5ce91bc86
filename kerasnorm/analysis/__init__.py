"""Why normalization works: norms, inputs, the loss landscape, statistics, robustness."""
