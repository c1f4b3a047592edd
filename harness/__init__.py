"""Benchmark and evaluation harness for low-bit quantization of diffusion models.

Importing this package touches neither torch nor diffusers; each stage imports what it needs.
"""

__version__ = "0.1.0"
