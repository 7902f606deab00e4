"""Random changes of training images on the device where they are trained on: a table of operators over whole
batches, policies that choose operators as pure functions of (seed, epoch, image), and mixtures of two images."""
