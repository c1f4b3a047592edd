"""Models at their true size with random weights: built on the device, quantized block by block, measured."""
