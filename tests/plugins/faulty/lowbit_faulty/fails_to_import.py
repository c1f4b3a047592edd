"""Registers a method, then fails: the registration must not survive."""

from __future__ import annotations

from harness.methods.contract import MethodConfig, QuantizeJob, method


@method("faulty-import", MethodConfig, version=1, summary="fails to import")
def quantize(job: QuantizeJob, config: MethodConfig) -> None:
    """Never runs."""


import a_package_that_does_not_exist  # type: ignore[import-not-found]  # noqa: E402, F401
