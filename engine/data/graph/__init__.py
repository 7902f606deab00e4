"""How an encoded image becomes a batch's pixels: DALI's graph, and its torchvision twin."""
