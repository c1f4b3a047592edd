"""What a cell ran on: versions and hardware. No names of hosts or users, and no paths."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "lowbit-harness",
    "torch",
    "torchvision",
    "triton",
    "diffusers",
    "transformers",
    "accelerate",
    "safetensors",
    "torch-fidelity",
    "lpips",
    "image-reward",
    "numpy",
    "scipy",
    "bitsandbytes",
    "torchao",
    "optimum-quanto",
    "gguf",
)


def environment() -> dict[str, Any]:
    """Return versions, CPU, threads and GPU as JSON types; what is not there is None or left out."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions(),
        "cpu": cpu_model(),
        "cores": _usable_cores(),
        "memory_bytes": _memory_bytes(),
        "threads": torch.get_num_threads(),
        "gpu": _gpu(),
    }


def versions() -> dict[str, str]:
    """Return the installed versions of the packages results depend on; those not installed are left out."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """Return the processor's name, or None where the system does not tell."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or None
    fields = [line.partition(":") for line in lines]
    return next((value.strip() for key, _, value in fields if key.strip() == "model name"), None)


def _usable_cores() -> int | None:
    """Cores this process may run on, which a container can limit."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _memory_bytes() -> int | None:
    """Physical memory, where the system tells."""
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _gpu() -> dict[str, Any] | None:
    """Name, compute capability, memory and CUDA version of the current GPU."""
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
    }
