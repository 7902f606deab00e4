"""What a process may take of a device's memory beside tensors, and what running out of it looks like."""
