"""MPQ-DM (Feng et al., AAAI 2025) and its neighbours on class-conditional ImageNet 256², LDM-4."""

from __future__ import annotations

from harness.reports.papers.lines import (
    LEADING,
    MPQDM_CELLS,
    SECOND_HAND,
    cell,
    figures,
    own_prompt_set,
    reference,
    side_by_side,
)
from harness.reports.tables.spec import Line, TableSpec, Where

_MODEL = "ldm-4-imagenet"
_KEYS = ("size", "inception_score", "fid", "sfid", "precision")
_FIGURES = ("inception_score", "fid", "sfid", "precision")


def _line(
    label: str, bits: str, source: str, values: str, where: Where | None = None, mark: str = ""
) -> Line:
    return Line(label, "LDM-4 ImageNet", bits, where or {}, figures(_KEYS, values, mark), source)


_QUEST = "QuEST"
_D2 = "D2-DPM"
_NOTES = "MPQ-DM (notes)"
_LINES = (
    _line("FP", "W32A32", _QUEST, "1529.7 364.73 11.28 7.70 –", reference(_MODEL)),
    _line("Q-Diffusion", "W8A8", _QUEST, "428.7 350.93 10.60 9.29 –"),
    _line("PTQ-D", "W8A8", _QUEST, "428.7 359.78 10.05 9.01 –"),
    _line("EfficientDM", "W8A8", _QUEST, "435.0 362.34 11.38 8.04 –"),
    _line("QuEST", "W8A8", _QUEST, "428.7 365.12 10.43 6.07 –"),
    _line("Q-Diffusion", "W4A8", _QUEST, "237.5 336.80 9.29 9.29 –"),
    _line("PTQ-D", "W4A8", _QUEST, "237.5 344.72 8.74 7.98 –"),
    _line("EfficientDM", "W4A8", _QUEST, "243.8 353.83 9.93 7.34 –"),
    _line("QuEST", "W4A8", _QUEST, "237.5 354.97 8.48 6.55 –"),
    _line("EfficientDM", "W4A4", _QUEST, "– 199.96 6.97 9.28 –"),
    _line("QuEST", "W4A4", _QUEST, "– 202.45 5.98 7.93 –"),
    _line("FP", "W32A32", _D2, "1742.72 366.03 11.13 7.834 .9393"),
    _line("PTQ4DM", "W8A8", _D2, "436.79 324.21 9.37 9.87 –"),
    _line("Q-Diffusion", "W8A8", _D2, "– 327.16 8.72 10.46 –"),
    _line("PTQ-D", "W8A8", _D2, "– 324.64 8.46 10.12 –"),
    _line("D2-DPM", "W8A8", _D2, "– 332.55 8.11 8.02 –"),
    _line("PTQ4DM", "W4A8", _D2, "219.12 336.28 10.45 13.94 –"),
    _line("Q-Diffusion", "W4A8", _D2, "– 347.52 11.13 9.07 –"),
    _line("PTQ-D", "W4A8", _D2, "– 355.10 10.41 8.45 –"),
    _line("D2-DPM", "W4A8", _D2, "– 358.14 9.75 6.60 –"),
    _line("MPQ-DM", "W3A6", _NOTES, "– 306.33 6.67 7.93 .8865", cell(_MODEL, "mpqdm", 3, 6), SECOND_HAND),
    _line("MPQ-DM", "W2A4", _NOTES, "– 136.35 11.00 47.74 .7284", cell(_MODEL, "mpqdm", 2, 4), SECOND_HAND),
    Line("MPQ-DMv2", "LDM-4 ImageNet", "W3A6", cell(_MODEL, "mpqdmv2", 3, 6)),
    Line("MPQ-DMv2", "LDM-4 ImageNet", "W2A4", cell(_MODEL, "mpqdmv2", 2, 4)),
)

TABLE = TableSpec(
    name="mpqdm-imagenet",
    caption="MPQ-DM and its neighbours on ImageNet 256², LDM-4, published and own",
    where=MPQDM_CELLS,
    columns=(
        *LEADING,
        *side_by_side(_FIGURES, {"dataset": "imagenet"}),
        *own_prompt_set(),
    ),
    compare=("model", "wbits", "abits"),
    lines=_LINES,
    notes=(
        "Published, QuEST: its ImageNet table; ADM evaluator, 50,000 images, 20 steps. D2-DPM: its "
        "ImageNet table; 20 "
        "DDIM steps, eta 0, guidance 3. Their FP rows differ: so do their protocols.",
        "Published, MPQ-DM: 20 steps, number of images unknown. No table of MPQ-DMv2 is known.",
        "With guidance, FID alone says little here: at W2A4 it equals that of the unquantized model "
        "while IS falls by "
        "more than half.",
    ),
)
