"""Benchmarks: `harness bench`."""
