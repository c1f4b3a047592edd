"""What each part of SVDQuant adds: smoothing, the low-rank branch, its rank."""

from __future__ import annotations

from harness.reports.papers.lines import figures, own_prompt_set, side_by_side
from harness.reports.tables.spec import ColumnSpec, Line, TableSpec, Where

_FIGURES = ("fid", "image_reward", "lpips", "psnr")
_KEYS = [f"mjhq/{name}" for name in _FIGURES]
_ROWS = {
    "FLUX.1-dev": {
        "naive": "20.2 .908 .322 18.5", "full": "20.1 .926 .256 20.1", "gptq": "19.9 .935 .223 21.0",
    },
    "FLUX.1-schnell": {
        "naive": "18.1 .962 .345 16.3", "full": "18.3 .957 .289 17.6", "gptq": "18.3 .951 .257 18.3",
    },
    "SANA-1.6B": {
        "naive": "20.5 .894 .339 15.3", "full": "19.9 .922 .234 17.4", "gptq": "19.3 .935 .220 17.8",
    },
    "PixArt-Σ": {"full": "19.9 .858 .356 17.0", "gptq": "19.2 .878 .323 17.6"},
}  # fmt: skip
_MODELS = {
    "FLUX.1-dev": "flux.1-dev",
    "FLUX.1-schnell": "flux.1-schnell",
    "SANA-1.6B": "sana-1.6b",
    "PixArt-Σ": "pixart-sigma",
}
_PARTS = {"naive": "Neither (naive)", "full": "Smoothing + branch (SVDQuant)", "gptq": "SVDQuant + GPTQ"}
_VARIANTS = {
    "Branch only": "grid=1",
    "Smoothing only": "rank=0",
    "SVDQuant, rank 16": "rank=16",
    "SVDQuant, rank 64": "rank=64",
}


def _own(section: str, variant: str) -> Where:
    where = {"model": _MODELS[section], "method": "svdquant", "variant": variant}
    return where | {"wbits": 4, "abits": 4}


def _lines(section: str) -> list[Line]:
    """Return a model's rows: first those published as numbers, then those published as figures only."""
    own = {"naive": _own(section, "grid=1,rank=0"), "full": _own(section, "default")}
    lines = [
        Line(_PARTS[part], section, "W4A4", own.get(part, {}), figures(_KEYS, values))
        for part, values in _ROWS[section].items()
    ]
    return lines + [
        Line(label, section, "W4A4", _own(section, variant)) for label, variant in _VARIANTS.items()
    ]


TABLE = TableSpec(
    name="ablation-svdquant",
    caption="Ablation of SVDQuant: smoothing, low-rank branch and rank, published and own",
    where={"method": ["reference", "svdquant"]},
    columns=(
        ColumnSpec("model"),
        ColumnSpec("method"),
        ColumnSpec("bits"),
        *side_by_side(_FIGURES, {"dataset": "mjhq"}, "MJHQ", "mjhq/"),
        *own_prompt_set(),
    ),
    compare=("model", "wbits", "abits"),
    lines=tuple(line for section in _ROWS for line in _lines(section)),
    notes=(
        "Published: the authors' repository (deepcompressor, examples/diffusion), INT4, MJHQ, 5,000 "
        "prompts; its figures "
        "changed between versions. The paper shows single parts and ranks in figures only, hence "
        "without numbers.",
        "Naive: round to nearest without smoothing or branch. Own variants: `--set svdquant.rank=0` "
        "(no branch), `--set "
        "svdquant.grid=1` (no smoothing).",
    ),
)
