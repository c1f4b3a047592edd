"""What a table can show of a cell: heading, digits, unit, and how its figures are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from harness.reports.formats.layout import MIB
from harness.reports.significance import RANKED, Better, Test

Kind = Literal["word", "stored", "measured", "metric", "distribution"]


@dataclass(frozen=True)
class Figure:
    """One thing a column can show; its name is that of a row's column (docs/reports.md).

    Attributes:
        heading: the column's heading, with unit and direction.
        kind: `word`; `stored` (bits and bytes, the same under every protocol); `measured` (time and memory);
            `metric` (formed prompt by prompt); `distribution` (formed of all images at once: its value
            depends on how many, so rows must have equal N).
        digits: decimals printed.
        scale: what one printed unit is.
        better: which direction is better; None for what is not ranked.
        test: the test that decides what is best; None: nothing of this column is ever bold.
    """

    heading: str
    kind: Kind
    digits: int = 2
    scale: float = 1.0
    better: Better | None = None
    test: Test | None = None


def _metric(heading: str, digits: int, name: str) -> Figure:
    better, test = RANKED[name]
    return Figure(heading, "metric", digits, better=better, test=test)


def _distribution(heading: str, digits: int, better: Better, test: Test | None = None) -> Figure:
    return Figure(heading, "distribution", digits, better=better, test=test)


FIGURES: dict[str, Figure] = {
    "model": Figure("Model", "word"),
    "method": Figure("Method", "word"),
    "bits": Figure("W/A", "word"),
    "abits": Figure("A bits", "word"),
    "dataset": Figure("Prompt set", "word"),
    "device": Figure("Device", "word"),
    "execution": Figure("Execution", "word"),
    "state": Figure("State", "word"),
    "source": Figure("Published in", "word"),
    "n": Figure("N", "measured", 0),
    "effective_bits": Figure("Eff. bits", "stored", 2),
    "weight_bytes": Figure("MiB", "stored", 2, MIB),
    "checkpoint_bytes": Figure("File MiB", "stored", 2, MIB),
    "peak_bytes": Figure("Peak MiB", "measured", 1, MIB),
    "step_ms": Figure("ms/step", "measured", 1),
    "step_ratio": Figure("Step ratio", "measured", 2),
    "quantize_s": Figure("Quantize s", "measured", 1),
    "generate_s": Figure("Generate s", "measured", 1),
    "psnr": _metric("PSNR ↑ (dB)", 2, "psnr"),
    "ssim": _metric("SSIM ↑", 3, "ssim"),
    "lpips": _metric("LPIPS ↓", 3, "lpips"),
    "lpips_scene": _metric("LPIPS-scene ↓", 3, "lpips_scene"),
    "prompt_accuracy": _metric("Prompt accuracy ↑", 3, "prompt_accuracy"),
    "image_reward": _metric("ImageReward ↑", 3, "image_reward"),
    "clip_score": _metric("CLIP score ↑", 2, "clip_score"),
    "clip_iqa": Figure("CLIP-IQA ↑", "metric", 3),
    "lpips_vgg": Figure("LPIPS (VGG) ↓", "metric", 3),
    "ms_ssim": Figure("MS-SSIM ↑", "metric", 3),
    "fid": _distribution("FID ↓", 2, *RANKED["fid"]),
    "fid_clean": _distribution("FID (clean) ↓", 2, "lower"),
    "fid_clean_ref": _distribution("FID (clean) to 16-bit ↓", 2, "lower"),
    "fid_ref": _distribution("FID to 16-bit ↓", 2, "lower"),
    "sfid": _distribution("sFID ↓", 2, "lower"),
    "kid": _distribution("KID ↓", 4, *RANKED["kid"]),
    "inception_score": _distribution("IS ↑", 2, "higher"),
    "precision": _distribution("Precision ↑", 3, "higher"),
    "recall": _distribution("Recall ↑", 3, "higher"),
}
"""Figures by name. A further metric of the records is shown under its own name, three decimals, unranked."""


def figure(name: str) -> Figure:
    """Return what is known of a figure; a further metric counts as one of all images."""
    return FIGURES.get(name) or Figure(name, "distribution", 3)
