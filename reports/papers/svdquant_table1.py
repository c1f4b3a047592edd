"""SVDQuant (Li et al., 2024), Table 1 of arXiv:2411.05007v1: quality on MJHQ and sDCI."""

from __future__ import annotations

from harness.reports.papers.lines import cell, figures, own_prompt_set, reference, side_by_side
from harness.reports.tables.spec import ColumnSpec, Line, TableSpec, Where

_FIGURES = ("fid", "image_reward", "lpips", "psnr")
_KEYS = [f"{data}/{name}" for data in ("mjhq", "sdci") for name in _FIGURES]


def _lines(section: str, rows: tuple[tuple[str, str, Where, str], ...]) -> tuple[Line, ...]:
    return tuple(
        Line(label, section, bits, where, figures(_KEYS, values)) for label, bits, where, values in rows
    )


def _svdquant(model: str, width: int) -> Where:
    return cell(model, "svdquant", width, width)


_FLUX_DEV = _lines(
    "FLUX.1-dev",
    (
        ("BF16", "W16A16", reference("flux.1-dev"), "20.3 .953 – – 24.8 1.02 – –"),
        ("SVDQuant INT", "W8A8", _svdquant("flux.1-dev", 8), "20.4 .948 .089 27.0 24.7 1.02 .106 24.9"),
        ("NF4", "W4A16", cell("flux.1-dev", "nf4", 4, 16), "20.6 .910 .272 19.5 24.9 .986 .292 18.2"),
        ("SVDQuant INT", "W4A4", _svdquant("flux.1-dev", 4), "19.9 .932 .254 20.1 24.7 .992 .273 18.8"),
        ("SVDQuant FP", "W4A4", {}, "21.0 .933 .247 20.2 25.7 .995 .267 18.7"),
    ),
)
_FLUX_SCHNELL = _lines(
    "FLUX.1-schnell",
    (
        ("BF16", "W16A16", reference("flux.1-schnell"), "19.2 .938 – – 20.8 .932 – –"),
        ("SVDQuant INT", "W8A8", _svdquant("flux.1-schnell", 8), "19.2 .966 .120 22.9 20.7 .975 .133 21.3"),
        ("NF4", "W4A16", cell("flux.1-schnell", "nf4", 4, 16), "18.9 .943 .257 18.2 20.7 .953 .263 17.1"),
        ("SVDQuant INT", "W4A4", _svdquant("flux.1-schnell", 4), "18.4 .969 .292 17.5 20.1 .988 .299 16.3"),
        ("SVDQuant FP", "W4A4", {}, "19.9 .956 .279 17.5 21.5 .967 .278 16.6"),
    ),
)
_PIXART = _lines(
    "PixArt-Σ",
    (
        ("FP16", "W16A16", reference("pixart-sigma"), "16.6 .944 – – 24.8 .966 – –"),
        ("ViDiT-Q INT", "W8A8", {}, "15.7 .944 .137 22.5 23.5 .974 .163 20.4"),
        ("SVDQuant INT", "W8A8", _svdquant("pixart-sigma", 8), "16.3 .955 .109 23.7 24.2 .969 .129 21.8"),
        ("ViDiT-Q INT", "W4A8", {}, "37.3 .573 .611 12.0 40.6 .600 .629 11.2"),
        ("ViDiT-Q INT", "W4A4", {}, "412 -2.27 .854 6.44 425 -2.28 .838 6.70"),
        ("SVDQuant INT", "W4A4", _svdquant("pixart-sigma", 4), "20.1 .898 .394 16.2 25.1 .922 .434 14.9"),
        ("SVDQuant FP", "W4A4", {}, "18.3 .946 .326 17.4 23.7 .978 .357 16.1"),
    ),
)
_TURBO = _lines(
    "SDXL-Turbo",
    (
        ("FP16", "W16A16", reference("sdxl-turbo"), "24.3 .845 – – 24.7 .705 – –"),
        ("MixDQ INT", "W8A8", {}, "24.1 .834 .147 21.7 25.0 .690 .157 21.6"),
        ("SVDQuant INT", "W8A8", _svdquant("sdxl-turbo", 8), "24.3 .845 .100 24.0 24.8 .701 .110 23.7"),
        ("MixDQ INT", "W4A8", {}, "27.7 .708 .402 15.7 25.9 .610 .415 15.7"),
        ("MixDQ INT", "W4A4", {}, "353 -2.26 .685 11.0 373 -2.28 .686 11.3"),
        ("SVDQuant INT", "W4A4", _svdquant("sdxl-turbo", 4), "24.5 .816 .265 17.9 25.7 .667 .278 17.8"),
        ("SVDQuant FP", "W4A4", {}, "24.1 .822 .250 18.5 24.7 .699 .261 18.4"),
    ),
)
_SDXL = _lines(
    "SDXL",
    (
        ("FP16", "W16A16", reference("sdxl"), "16.6 .729 – – 22.5 .573 – –"),
        ("TensorRT INT", "W8A8", {}, "20.2 .591 .247 22.0 25.4 .453 .265 21.7"),
        ("SVDQuant INT", "W8A8", _svdquant("sdxl", 8), "16.6 .718 .119 26.4 22.4 .574 .129 25.9"),
        ("SVDQuant INT", "W4A4", _svdquant("sdxl", 4), "20.7 .609 .298 20.6 26.3 .494 .314 20.4"),
        ("SVDQuant FP", "W4A4", {}, "19.0 .607 .294 21.0 25.4 .480 .312 20.7"),
    ),
)

TABLE = TableSpec(
    name="svdquant-table1",
    caption="SVDQuant, Table 1: quality against the 16-bit model, published and own",
    where={"method": ["reference", "svdquant", "nf4", "ptq"]},
    columns=(
        ColumnSpec("model"),
        ColumnSpec("method"),
        ColumnSpec("bits"),
        *side_by_side(_FIGURES, {"dataset": "mjhq"}, "MJHQ", "mjhq/"),
        *side_by_side(_FIGURES, {"dataset": "sdci"}, "sDCI", "sdci/"),
        *own_prompt_set(),
    ),
    compare=("model", "wbits", "abits"),
    lines=(*_FLUX_DEV, *_FLUX_SCHNELL, *_PIXART, *_TURBO, *_SDXL),
    notes=(
        "Published: arXiv:2411.05007v1, Table 1. 5,000 prompts of each set; 50 (FLUX.1-dev), 4 "
        "(schnell, Turbo), 20 "
        "(PixArt-Σ) and 30 (SDXL) steps; LPIPS and PSNR against the 16-bit images.",
        "FID depends on N: a published FID of 5,000 images compares with no own FID of fewer.",
    ),
)
