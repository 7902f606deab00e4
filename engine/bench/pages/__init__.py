"""What the measurements are shown as."""
