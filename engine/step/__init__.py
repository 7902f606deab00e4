"""One optimizer step and how it is carried out: the plan's value, the wrapped network, what is kept and recomputed."""
