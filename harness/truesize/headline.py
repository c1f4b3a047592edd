"""The figures that stand for a run of FLUX.1-dev as published."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.bench.peers import FP8_ROWWISE, NF4
from harness.models.configs import CONFIGS
from harness.truesize.request import REFERENCE, BenchRequest
from harness.truesize.turns import BEST, COMPILED, EAGER, EAGER_GRAPH, GRAPH


def headline(result: Mapping[str, Any], request: BenchRequest) -> dict[str, float]:
    """Return the figures of what a run has measured so far; none for another model, size or shape.

    `flux_step_ms` is the compiled step where compiling was asked for, else the eager one. A compiled step is
    the faster of launched and replayed, of either model, once both were timed. Ratios above 1 mean that ours
    is faster.
    """
    recipe = request.recipe
    whole = recipe.config == CONFIGS[recipe.card.name] and recipe.side is None and recipe.text_tokens is None
    if not (request.quantized and whole and recipe.card.name == "flux.1-dev"):
        return {}
    rows = {row["name"]: row for row in result["rows"]}
    ours = rows.get(request.name, {})
    found: dict[str, float] = {}

    def compiled(row: Mapping[str, Any]) -> str:
        return BEST if row.get(f"{BEST}_ms") and ours.get(f"{BEST}_ms") else COMPILED

    for key, mode in (
        ("flux_step_ms", compiled(ours) if request.compile else EAGER),
        ("flux_step_launched_ms", COMPILED),
        ("flux_step_graph_ms", GRAPH),
        ("flux_step_eager_ms", EAGER),
        ("flux_step_eager_graph_ms", EAGER_GRAPH),
    ):
        if ours.get(f"{mode}_ms"):
            found[key] = ours[f"{mode}_ms"]["median"]
    for key, row, mode in (
        ("flux_step_vs_bf16_compiled", REFERENCE, compiled(rows.get(REFERENCE, {}))),
        ("flux_step_vs_bf16_eager", REFERENCE, EAGER),
        ("flux_step_vs_torchao_fp8_compiled", FP8_ROWWISE, compiled(rows.get(FP8_ROWWISE, {}))),
        ("flux_step_vs_bf16_launched", REFERENCE, COMPILED),
        ("flux_step_vs_torchao_fp8_launched", FP8_ROWWISE, COMPILED),
        ("flux_step_vs_bf16_graph", REFERENCE, GRAPH),
        ("flux_step_vs_torchao_fp8_graph", FP8_ROWWISE, GRAPH),
        ("flux_step_vs_nf4_eager", NF4, EAGER),
    ):
        ratio = rows.get(row, {}).get(f"{mode}_ours_faster")
        if ratio:
            found[key] = ratio[0]
    memory = ours.get("memory")
    if memory:
        found["flux_weights_gib"] = (memory["packed_bytes"] + memory["kept_bytes"]) / 2**30
        found["flux_peak_gib"] = memory["peak_bytes"] / 2**30
        found["flux_load_peak_gib"] = memory["load_peak_bytes"] / 2**30
    if result["quantize"] and not result["quantize"]["resumed"]:
        found["flux_quantize_s"] = result["quantize"]["seconds"]
        found["flux_quantize_host_gib"] = result["quantize"]["host_peak_bytes"] / 2**30
    return found
