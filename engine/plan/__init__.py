"""What fits in a GPU's memory and what it costs, before anything is allocated."""
