"""What a run leaves behind: its folder, its rows, where it came from, and the words that tell of it."""
