"""Networks of parallel branches, and Xception, their limit."""
