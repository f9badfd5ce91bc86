"""The native engine of PyTorch."""
