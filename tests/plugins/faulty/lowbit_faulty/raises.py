"""A method that raises after the first layer."""

from __future__ import annotations

from harness.methods.contract import MethodConfig, QuantizeJob, method


@method("faulty-raise", MethodConfig, version=1, summary="raises")
def quantize(job: QuantizeJob, config: MethodConfig) -> None:
    """Give up."""
    raise RuntimeError(f"no idea how to quantize {job.targets[0].name}")
