"""A description as somebody wrote it: text into plain values, and numbers that none can mean."""
