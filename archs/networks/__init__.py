"""The networks, one file an architecture, in families."""
