"""All checks: at least one for every metric."""

from __future__ import annotations

from harness.conformance import clouds, networks, pixels
from harness.conformance.check import Check

CHECKS: tuple[Check, ...] = (*pixels.CHECKS, *clouds.CHECKS, *networks.CHECKS)
