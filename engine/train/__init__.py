"""The loop: a run from its description to its end, epoch by epoch, with an evaluation after each."""
