"""A trained network for other programs: graphs that take raw pictures, and weights under a library's own keys."""
