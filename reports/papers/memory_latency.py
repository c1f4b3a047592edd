"""Memory and latency: SVDQuant's figures on FLUX.1-dev beside what was measured here."""

from __future__ import annotations

from harness.reports.papers.lines import cell, figures, reference
from harness.reports.tables.spec import ColumnSpec, Line, TableSpec

_MODEL = "flux.1-dev"
_KEYS = ("weights", "memory", "4090", "laptop", "5090")
_ROWS = (
    ("BF16", "W16A16", reference(_MODEL), "22.2 24.4 657 4382 484"),
    ("NF4", "W4A16", cell(_MODEL, "nf4", 4, 16), "5.8 9.8 660 1320 496"),
    ("SVDQuant", "W4A4", cell(_MODEL, "svdquant", 4, 4), "6.1 6.9 218 433 162"),
)
_PUBLISHED = "Published"
_STEP = "One step, ms, published"

TABLE = TableSpec(
    name="memory-latency",
    caption="Memory and latency of one denoiser step, published and own",
    columns=(
        ColumnSpec("model"),
        ColumnSpec("method"),
        ColumnSpec("bits"),
        ColumnSpec("weight_bytes", heading="Weights GiB", span=_PUBLISHED, published="weights"),
        ColumnSpec("peak_bytes", heading="Memory GiB", span=_PUBLISHED, published="memory"),
        ColumnSpec("step_ms", heading="RTX 4090", span=_STEP, published="4090"),
        ColumnSpec("step_ms", heading="4090 laptop", span=_STEP, published="laptop"),
        ColumnSpec("step_ms", heading="RTX 5090", span=_STEP, published="5090"),
        ColumnSpec("checkpoint_bytes", span="Own"),
        ColumnSpec("peak_bytes", span="Own"),
        ColumnSpec("step_ms", span="Own"),
        ColumnSpec("step_ratio", span="Own"),
    ),
    lines=tuple(
        Line(label, "FLUX.1-dev", bits, where, figures(_KEYS, values)) for label, bits, where, values in _ROWS
    ),
    notes=(
        "Published: SVDQuant, arXiv:2411.05007, FLUX.1-dev at 1024², batch 1; memory of the "
        "denoiser's inference as of "
        "version 2. On the laptop the 16-bit model is off-loaded to the CPU. On the RTX 5090 "
        "SVDQuant runs NVFP4.",
        "Own: peak memory of one forward; time of one step with one prompt on the device named below "
        "the table.",
    ),
)
