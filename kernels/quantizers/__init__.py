"""Quantizers as pure functions: tensors in, codes and their parameters out."""
