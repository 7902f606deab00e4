"""What survives kills, signals and memory that ran out: checkpoints, and steps that are done again."""
