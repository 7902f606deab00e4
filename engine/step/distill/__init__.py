"""A trained network whose outputs another one learns: what it is, and its logits of a batch, kept or computed."""
