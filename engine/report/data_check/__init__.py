"""What the examination of a data set found, in ten lines, as a page and as a sheet of pictures."""
