"""Peak memory of a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile


def forward_peak_bytes(function: Callable[[], object], device: torch.device | str, resident: int = 0) -> int:
    """Return the most bytes held at once while `function` runs, beyond what was held before it.

    What else lies on the device (a text encoder, another model) is so left out. On CUDA the peak is the
    caching allocator's; on the CPU it is counted from the allocations and frees that torch's profiler
    records.

    Args:
        function: the forward pass; an untimed first run, outside the count, pays for one-off allocations.
        device: where it runs.
        resident: bytes to add that the pass needs and that were held before, as the denoiser's weights
            (`module_bytes`).
    """
    function()
    if torch.device(device).type == "cuda":
        return resident + _cuda_peak(function, torch.device(device))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        function()
    return resident + running_peak(_allocations(trace))


def _cuda_peak(function: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    function()
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device) - before)


def _allocations(trace: profile) -> list[tuple[int, int]]:
    """Return (time in ns, bytes) of every CPU allocation (positive) and free (negative) of a trace."""
    results = trace.profiler.kineto_results if trace.profiler is not None else None
    if results is None:
        raise RuntimeError("the profiler recorded nothing")
    return [
        (event.start_ns(), event.nbytes())  # type: ignore[attr-defined]
        for event in results.events()
        if event.name() == "[memory]" and event.device_type() == DeviceType.CPU
    ]


def running_peak(events: Iterable[tuple[int, int]]) -> int:
    """Return the largest running sum of (time, bytes) events in order of time, at least 0.

    Events of the same time keep their given order.
    """
    held = peak = 0
    for _, size in sorted(events, key=lambda event: event[0]):
        held += size
        peak = max(peak, held)
    return peak


def module_bytes(module: nn.Module) -> int:
    """Return the bytes of a module's parameters and buffers; storage that several share is counted once."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in (*module.parameters(), *module.buffers())
    }
    return sum(storages.values())
