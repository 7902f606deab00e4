"""Networks of patches: attention, and the MLPs that mix tokens in its place."""
