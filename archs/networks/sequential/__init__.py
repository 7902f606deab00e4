"""Chains of convolutions: every layer reads the one before it."""
