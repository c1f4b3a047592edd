"""Triton kernels: activation quantization, expansion of packed weights, integer GEMM and weight-only GEMV.

The modules hold `triton.jit` functions and nothing that runs them; `ops` launches them as torch custom ops.
"""
