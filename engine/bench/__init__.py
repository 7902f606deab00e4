"""Measurements of this project beside its peers, each a ratio taken in one process."""
