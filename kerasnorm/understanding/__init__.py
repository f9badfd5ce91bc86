"""Normalization explained by measurement: each question gives data and figures."""
