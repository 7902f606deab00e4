"""Weights from elsewhere: files as people have them, and what libraries publish."""
