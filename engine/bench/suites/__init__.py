"""What is measured: one file a suite, each with its rows."""
