"""Where images come from, in what order, and how they reach the device."""
