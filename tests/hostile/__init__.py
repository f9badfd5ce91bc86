"""Inputs that people really have and that break programs, with what must happen to each."""
