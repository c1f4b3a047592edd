"""The result of `harness bench model` as a table and remarks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.truesize.turns import BEST, COMPILED, EAGER, EAGER_GRAPH, GRAPH, MODES

COLUMNS = (
    "model", "bits", "packed GiB", "kept GiB", "scratch GiB", "activations GiB", "peak GiB", "load peak GiB",
    "fits in", "step ms, eager", "step ms, eager graph", "step ms, compiled",
    "step ms, compiled graph", "step ms, compiled best", "speed-up, compiled", "quality",
)  # fmt: skip
_SIZES = (
    "packed_bytes",
    "kept_bytes",
    "scratch_bytes",
    "activation_bytes",
    "peak_bytes",
    "load_peak_bytes",
)
_GIB = 2**30
BEST_WAYS = {COMPILED: "launched from Python", GRAPH: "as one CUDA graph"}


def table(result: Mapping[str, Any]) -> str:
    """Return the rows as a Markdown table; `-` is what was not measured."""
    lines = [COLUMNS, tuple("---" for _ in COLUMNS)]
    for row in result["rows"]:
        held = row.get("memory") or {}
        sizes = [f"{held[key] / _GIB:.2f}" if key in held else "-" for key in _SIZES]
        if not held and row.get("weights_bytes"):
            sizes[0] = f"{row['weights_bytes'] / _GIB:.2f} in all"
        fits = f"{row['fits_in_gb']} GB" if row.get("fits_in_gb") else "-"
        eager = (_ms(row, EAGER), _ms(row, EAGER_GRAPH))
        times = (*eager, _ms(row, COMPILED), _ms(row, GRAPH), _ms(row, BEST), _speedup(row))
        lines.append((row["name"], row["bits"], *sizes, fits, *times, result["quality"]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _ms(row: Mapping[str, Any], mode: str) -> str:
    if row.get("error") or row.get(f"{mode}_error"):
        return "failed"
    if row.get(f"{mode}_left_out"):
        return "left out"
    found = row.get(f"{mode}_ms")
    return f"{found['median']:.1f} [{found['lo']:.1f}, {found['hi']:.1f}]" if found else "-"


def _speedup(row: Mapping[str, Any]) -> str:
    found = row.get(f"{BEST}_ms") or row.get(f"{COMPILED}_ms")
    if not found:
        return "-"
    return f"{found['speedup']:.2f} [{found['speedup_lo']:.2f}, {found['speedup_hi']:.2f}]"


def notes(result: Mapping[str, Any]) -> list[str]:
    """Return the remarks under the table."""
    found = [
        f"{result['model']}, {result['side']} pixels, batch {result['batch']}, random weights; "
        "times: median [quartiles], models in turns; speed-up over bf16 compiled, with its 95 % interval."
    ]
    unfinished = [f"{name} {said}" for name, said in result["stages"].items() if said != "done"]
    if unfinished:
        found.append(f"Stages that were not finished: {'; '.join(unfinished)}.")
    quantize = result["quantize"]
    if quantize:
        spent = ", ".join(f"{name} {seconds:.1f}" for name, seconds in quantize["phases"].items())
        found.append(
            f"Quantized {quantize['layers']} layers in {quantize['seconds']:.1f} s"
            f" ({quantize['resumed']} of {quantize['blocks']} blocks were there; {spent} s);"
            f" host peak {quantize['host_peak_bytes'] / _GIB:.1f} GiB,"
            f" device peak {quantize['device_peak_bytes'] / _GIB:.1f} GiB."
        )
    for row in result["rows"]:
        for key in ("error", "memory_error", *(f"{mode}_error" for mode in MODES)):
            if row.get(key):
                found.append(f"{row['name']}: {key.replace('_', ' ')}: {row[key]}")
        for mode in MODES:
            if row.get(f"{mode}_left_out"):
                found.append(
                    f"{row['name']}: {mode.replace('_', ' ')} step left out: {row[f'{mode}_left_out']}"
                )
        for where, seen in (row.get("image") or {}).items():
            if "error" in seen:
                found.append(f"{row['name']}: image, {where}: {seen['error']}")
                continue
            found.append(
                f"{row['name']}: one image of {seen['steps']} steps, {where}: {seen['ms'] / 1e3:.2f} s,"
                f" peak {seen['peak_bytes'] / _GIB:.2f} GiB."
            )
        if row.get("compiled_as"):
            best = f", best {BEST_WAYS[row['compiled_best_is']]}" if row.get("compiled_best_is") else ""
            found.append(f"{row['name']}: compiled {row['compiled_as']}{best}.")
    return found
