"""What images there are: a source lists them with their classes and says how they want to be treated."""
