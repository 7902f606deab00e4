"""A whole optimizer step as one CUDA graph: when that is done, and the recording itself."""
