"""MPQ-DM and its neighbours on LSUN 256²: Bedrooms (LDM-4) and Churches (LDM-8), FID."""

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

_MODELS = {"Bedrooms LDM-4": "ldm-4-bedroom", "Churches LDM-8": "ldm-8-church"}
_NOTES = "MPQ-DM (notes)"
_QUEST = {
    "Bedrooms LDM-4": (
        ("FP", "W32A32", "1045.6", "2.95"), ("PTQ4DM", "W8A8", "279.1", "4.75"),
        ("Q-Diffusion", "W8A8", "279.1", "4.53"), ("PTQ-D", "W8A8", "279.1", "3.75"),
        ("QuEST", "W8A8", "279.1", "3.03"), ("Q-Diffusion", "W4A8", "148.4", "5.37"),
        ("PTQ-D", "W4A8", "148.4", "5.94"), ("EfficientDM", "W4A8", "148.4", "15.15"),
        ("QuEST", "W4A8", "148.4", "3.26"), ("EfficientDM", "W4A4", "–", "10.60"),
        ("QuEST", "W4A4", "–", "5.64"),
    ),
    "Churches LDM-8": (
        ("FP", "W32A32", "1125.4", "4.02"), ("PTQ4DM", "W8A8", "330.6", "63.93"),
        ("Q-Diffusion", "W8A8", "330.6", "6.94"), ("PTQ-D", "W8A8", "330.6", "10.76"),
        ("QuEST", "W8A8", "330.6", "6.55"), ("Q-Diffusion", "W4A8", "189.9", "7.80"),
        ("PTQ-D", "W4A8", "189.9", "7.33"), ("EfficientDM", "W4A8", "189.9", "9.29"),
        ("QuEST", "W4A8", "189.9", "7.33"), ("EfficientDM", "W4A4", "–", "14.34"),
        ("QuEST", "W4A4", "–", "11.76"),
    ),
}  # fmt: skip
# Of MPQ-DM's own tables one FID and one difference are known, both on Bedrooms at W2A4.
_NOTED = {
    ("Bedrooms LDM-4", "Baseline", "W2A4"): {"fid": Published("33.09", DERIVED)},
    ("Bedrooms LDM-4", "MPQ-DM", "W2A4"): {"fid": Published("20.28", SECOND_HAND)},
}


def _quest(section: str) -> list[Line]:
    """Return the rows of QuEST's table of one set."""
    own: dict[str, Where] = {"FP": reference(_MODELS[section])}
    return [
        Line(label, section, bits, own.get(label, {}), figures(("size", "fid"), f"{size} {fid}"), "QuEST")
        for label, bits, size, fid in _QUEST[section]
    ]


def _mpqdm(section: str) -> list[Line]:
    """Return the rows of MPQ-DM's own widths."""
    model = _MODELS[section]
    rows: list[tuple[str, str, Where]] = [
        ("Baseline", "W2A4", {}),
        ("MPQ-DM", "W3A6", cell(model, "mpqdm", 3, 6)),
        ("MPQ-DM", "W2A4", cell(model, "mpqdm", 2, 4)),
        ("MPQ-DMv2", "W3A6", cell(model, "mpqdmv2", 3, 6)),
        ("MPQ-DMv2", "W2A4", cell(model, "mpqdmv2", 2, 4)),
    ]
    lines = []
    for label, bits, where in rows:
        published = _NOTED.get((section, label, bits), {})
        if where or published:
            lines.append(Line(label, section, bits, where, published, _NOTES if published else ""))
    return lines


TABLE = TableSpec(
    name="mpqdm-lsun",
    caption="MPQ-DM and its neighbours on LSUN 256², FID, published and own",
    where=MPQDM_CELLS,
    columns=(
        *LEADING,
        ColumnSpec("fid", heading="FID ↓ published", published="fid"),
        ColumnSpec("fid", {"dataset": ["unconditional", "lsun-bedroom", "lsun-church"]}, "FID ↓ own"),
        *own_prompt_set(),
    ),
    compare=("model", "wbits", "abits"),
    lines=tuple(line for section in _QUEST for line in (*_quest(section), *_mpqdm(section))),
    notes=(
        "Published, QuEST: its LSUN tables; ADM evaluator, 50,000 images; 200 steps for Bedrooms, "
        "500 for Churches.",
        "Published, MPQ-DM: LSUN-Bedrooms at W2A4; its baseline follows from the difference of 12.81 "
        "that is reported.",
    ),
)
