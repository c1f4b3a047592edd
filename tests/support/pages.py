"""A run folder with images, ledgers and names that try to be markup, for the tests of the page."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from harness.reports.record import Metric, Record

SIDE = 16
PROMPTS = 6
RIGHT = [0.0, 1.0, 1.0, 0.0, 1.0, 1.0]
MARKUP = '<b>bold</b><img src=x onerror="window.hit=1"></script><script>window.hit=1</script>&amp;\'"`${1}'
CAPTIONS = [f"{MARKUP} prompt", *(f"a small red star number {index}" for index in range(1, PROMPTS))]


def pixels(seed: int, side: int = SIDE) -> NDArray[np.uint8]:
    """Return noise: what a lossy encoding would change."""
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def psnr(x: NDArray[np.uint8], y: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio in dB."""
    return float(10 * np.log10(255**2 / np.mean((x.astype(float) - y.astype(float)) ** 2)))


def write_images(cell: Path, images: Sequence[NDArray[np.uint8]], block: int = 4) -> None:
    """Write images as blocks of a cell."""
    for index, image in enumerate(images):
        folder = cell / "blocks" / f"{index // block:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{index % block:02d}.png")


def write_ledger(cell: Path, names: Sequence[str], note: dict[str, Any]) -> None:
    """Write a ledger of linear layers of 8 x 16 weights at 4 bits."""
    parts = {"codes": 64, "scales": 16, "bias": 16}
    rows = [
        {
            "name": name, "role": "attn.q", "kind": "linear", "shape": [8, 16], "w_bits": 4, "a_bits": 8,
            "mean_bits": 4.0, "bytes": parts, "note": {**note, "error": 0.25 * (index + 1)},
        }
        for index, name in enumerate(names)
    ]  # fmt: skip
    (cell / "checkpoint").mkdir(parents=True, exist_ok=True)
    (cell / "checkpoint" / "ledger.json").write_text(json.dumps({"rows": rows}))


def small_run(
    run: Path, make: Callable[..., Record], save: Callable[[Path, list[Record]], None]
) -> list[Record]:
    """Write a run of one model: the reference, `ptq`, a method named like markup and one that crashed."""
    shared = {"n": PROMPTS, "model": "tiny-dit"}
    images = {name: [pixels(100 * row + i) for i in range(PROMPTS)] for row, name in enumerate("rpm")}
    values = {name: [psnr(x, y) for x, y in zip(images[name], images["r"], strict=True)] for name in "pm"}
    hostile = {
        "variant": MARKUP, "config": {MARKUP: MARKUP}, "reconstruction": True, "cell": "c" * 16,
        "environment": {"cpu": MARKUP, "versions": {MARKUP: MARKUP}}, "log_tail": None,
        "metrics": {"psnr": Metric(7.5, 7.0, 8.0), MARKUP: Metric(1.5), "fid": Metric(None, note=MARKUP)},
        "per_prompt": {"psnr": values["m"], MARKUP: [1.0] * PROMPTS}, "step_error": [0.0, 0.0, 0.0],
    }  # fmt: skip
    failed = {
        "state": "crashed", "metrics": {}, "n": 0, "effective_bits": None, "weight_bytes": None,
        "step_ms": None, "message": f"died of {MARKUP}", "cell": "d" * 16,
        "log_tail": f"line one\n\x1b[31m{MARKUP}\nlast line",
    }  # fmt: skip
    records = [
        make("reference", 16, **shared, cell="a" * 16, per_prompt={"prompt_accuracy": [1.0] * PROMPTS}),
        make(
            "ptq", 4, **shared, cell="b" * 16, step_error=[0.01, 0.0, 0.1],
            per_prompt={"psnr": values["p"], "prompt_accuracy": RIGHT},
        ),
        make(MARKUP, 3, **shared, **hostile),
        make("nf4", 2, **{**shared, **failed}),
    ]  # fmt: skip
    save(run, records)
    for key, name in (("a", "r"), ("b", "p"), ("c", "m")):
        write_images(run / "cells" / (key * 16), images[name])
    write_ledger(run / "cells" / ("b" * 16), ["first", "second"], {"rank": 4})
    write_ledger(run / "cells" / ("c" * 16), [MARKUP], {MARKUP: MARKUP})
    return records
