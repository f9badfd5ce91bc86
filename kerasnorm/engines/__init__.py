"""Training engines: one small interface, one implementation a backend, one portable."""
