"""A quantization method in a package of its own."""
