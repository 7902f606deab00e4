"""What the images of a run are as numbers."""
