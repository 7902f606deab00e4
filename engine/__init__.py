"""The training engine: a run description becomes a plan, the plan wraps a model, DALI feeds it, the trainer loops."""
