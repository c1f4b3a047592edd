"""State of the GPU beside a measurement: clocks, temperature and power, as nvidia-smi tells them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

FIELDS = {
    "name": "name",
    "driver": "driver_version",
    "sm_mhz": "clocks.sm",
    "memory_mhz": "clocks.mem",
    "temperature_c": "temperature.gpu",
    "power_w": "power.draw",
}
_WORDS = ("name", "driver")
_SECONDS = 20.0


@dataclass(frozen=True)
class GpuState:
    """What nvidia-smi says of one GPU at one moment; None where it does not say.

    Attributes:
        name: the card.
        driver: version of the driver.
        sm_mhz: clock of the multiprocessors.
        memory_mhz: clock of the memory.
        temperature_c: degrees Celsius.
        power_w: watts drawn.
    """

    name: str | None = None
    driver: str | None = None
    sm_mhz: float | None = None
    memory_mhz: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None


def gpu_state(index: int = 0, query: Callable[[int], str | None] | None = None) -> GpuState:
    """Return the state of a GPU; every field None where there is no nvidia-smi or no such GPU.

    Args:
        index: of the GPU, as nvidia-smi counts.
        query: returns the line nvidia-smi prints, or None; by default nvidia-smi is asked.
    """
    line = (query or _ask)(index)
    values = [] if line is None else [part.strip() for part in line.split(",")]
    if len(values) != len(FIELDS):
        return GpuState()
    told = dict(zip(FIELDS, values, strict=True))
    words = {name: told[name] or None for name in _WORDS}
    numbers = {name: _number(value) for name, value in told.items() if name not in _WORDS}
    return GpuState(**words, **numbers)  # type: ignore[arg-type]


def _ask(index: int) -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    fields = ",".join(FIELDS.values())
    command = [program, f"--query-gpu={fields}", "--format=csv,noheader,nounits", f"--id={index}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _number(text: str) -> float | None:
    """Return a number, None for the words that stand in the place of one (`[N/A]`)."""
    try:
        return float(text)
    except ValueError:
        return None
