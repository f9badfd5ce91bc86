"""What is done to a run to lose it, and what must be left; see `tests/reliability.py`."""
