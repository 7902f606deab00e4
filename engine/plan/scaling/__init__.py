"""What a step would take on many GPUs, before anyone has them: projections, never measurements."""
