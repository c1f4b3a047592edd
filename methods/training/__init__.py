"""Distillation of a quantized denoiser from its 16-bit self, for every method that trains."""
