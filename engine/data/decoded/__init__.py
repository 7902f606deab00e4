"""Images decoded once, as bytes in one memory-mapped file that all processes of a machine share."""
