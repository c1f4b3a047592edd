"""MPQ-DM and its neighbours on Stable Diffusion v1.4, CLIP score on COCO prompts."""

from __future__ import annotations

from harness.reports.papers.lines import (
    DERIVED,
    LEADING,
    MPQDM_CELLS,
    SECOND_HAND,
    cell,
    figures,
    own_prompt_set,
    reference,
)
from harness.reports.tables.spec import ColumnSpec, Line, Published, TableSpec, Where

_MODEL = "sd-1.4"
_SECTION = "SD v1.4"
_QUEST = (
    ("FP", "W32A32", "3279.1 31.50"),
    ("Q-Diffusion", "W8A8", "949.0 31.43"),
    ("QuEST", "W8A8", "949.0 31.47"),
    ("Q-Diffusion", "W4A8", "539.1 31.39"),
    ("QuEST", "W4A8", "539.1 31.50"),
    ("QuEST", "W4A4", "– 28.85"),
)


def _quest(label: str, bits: str, values: str) -> Line:
    where: Where = reference(_MODEL) if label == "FP" else {}
    return Line(label, _SECTION, bits, where, figures(("size", "clip"), values), "QuEST")


def _noted(label: str, clip: str, mark: str) -> Line:
    return Line(label, _SECTION, "W2A6", {}, {"clip": Published(clip, mark)}, "MPQ-DM (notes)")


TABLE = TableSpec(
    name="mpqdm-sd14",
    caption="MPQ-DM and its neighbours on Stable Diffusion v1.4, CLIP score, published and own",
    where=MPQDM_CELLS,
    columns=(
        *LEADING,
        ColumnSpec("clip_score", heading="CLIP score ↑ published", published="clip"),
        ColumnSpec("clip_score", {"dataset": "coco"}, "CLIP score ↑ own"),
        *own_prompt_set(),
    ),
    compare=("model", "wbits", "abits"),
    lines=(
        *(_quest(*row) for row in _QUEST),
        _noted("Baseline", "22.94", DERIVED),
        _noted("MPQ-DM+", "25.02", SECOND_HAND),
        *(
            Line(label, _SECTION, f"W{wbits}A{abits}", cell(_MODEL, method, wbits, abits))
            for label, method in (("MPQ-DM", "mpqdm"), ("MPQ-DMv2", "mpqdmv2"))
            for wbits, abits in ((3, 6), (2, 6))
        ),
    ),
    notes=(
        "Published, QuEST: PLMS 50 steps, 10,000 prompts of COCO 2014 val, CLIP ViT-B/16; scores of "
        "another CLIP model "
        "differ.",
        "Published, MPQ-DM: 10,000 COCO prompts; its baseline follows from the difference of 2.08 "
        "that is reported.",
    ),
)
