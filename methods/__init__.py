"""Quantization methods, one file each, and the contract they share (`harness.methods.contract`)."""
