"""State of the GPU beside a measurement: clocks, temperature and power, as nvidia-smi tells them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

import torch

FIELDS = {
    "name": "name",
    "driver": "driver_version",
    "sm_mhz": "clocks.sm",
    "memory_mhz": "clocks.mem",
    "temperature_c": "temperature.gpu",
    "power_w": "power.draw",
    "throttled": "clocks_event_reasons.active",
}
OLDER_NAMES = {"clocks_event_reasons.active": "clocks_throttle_reasons.active"}
"""Drivers before 535 know a field by another name, and refuse the whole question for one they do not know."""
_WORDS = ("name", "driver", "throttled")
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
        throttled: why clocks are held down, as a mask of reasons in hexadecimal.
    """

    name: str | None = None
    driver: str | None = None
    sm_mhz: float | None = None
    memory_mhz: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    throttled: str | None = None


def gpu_state(device: torch.device | str, query: Callable[[str, str], str | None] | None = None) -> GpuState:
    """Return the state of the GPU that torch knows as `device`.

    nvidia-smi is asked by the card's UUID: its own numbers know nothing of CUDA_VISIBLE_DEVICES.

    Args:
        device: every field is None elsewhere than on CUDA, and where there is no nvidia-smi.
        query: returns the line nvidia-smi prints for a card and fields, or None; by default it is asked.
    """
    if torch.device(device).type != "cuda":
        return GpuState()
    card, fields = card_of(device), ",".join(FIELDS.values())
    older = fields
    for name, former in OLDER_NAMES.items():
        older = older.replace(name, former)
    ask = query or _ask
    line = ask(card, fields) or ask(card, older)
    values = [] if line is None else [part.strip() for part in line.split(",")]
    if len(values) != len(FIELDS):
        return GpuState()
    told = dict(zip(FIELDS, values, strict=True))
    words = {name: told[name] or None for name in _WORDS}
    numbers = {name: _number(value) for name, value in told.items() if name not in _WORDS}
    return GpuState(**words, **numbers)  # type: ignore[arg-type]


def card_of(device: torch.device | str) -> str:
    """Return what nvidia-smi knows a CUDA device of torch by."""
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"  # type: ignore[attr-defined]


def _ask(card: str, fields: str) -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, f"--query-gpu={fields}", "--format=csv,noheader,nounits", f"--id={card}"]
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
