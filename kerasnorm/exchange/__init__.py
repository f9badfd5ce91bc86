"""Models out and in: writing portable files, and reading files that may be hostile."""
