"""Conformance of every metric with the library or the closed form that defines it, as `harness doctor` runs it."""
