"""What the ranks of a session do together: the roll call, the plan, the weights that they bring into one file."""
