"""Records with realistic figures, made up and fixed."""

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.reports.record import Identity, Measured, Metric, Record, Result

WEIGHTS = {"tiny-unet": 5_300_000, "tiny-dit": 6_100_000}
PSNR = {
    "ptq": (12.4, 19.8, 27.5),
    "nf4": (11.9, 21.6, 29.9),
    "svdquant": (14.8, 23.0, 30.8),
    "mpqdm": (13.9, 22.1, 29.0),
    "mpqdmv2": (15.6, 22.7, 29.6),
}
EXTRA_BITS = {"ptq": 0.03, "nf4": 0.5, "svdquant": 0.62, "mpqdm": 0.06, "mpqdmv2": 0.41}


def make_record(method: str = "ptq", wbits: int = 4, **changes: Any) -> Record:
    """Return one plausible record; `changes` replace fields of identity, result or measured by name."""
    model = changes.get("model", "tiny-unet")
    reference = method == "reference"
    draw = random.Random(repr((model, method, wbits)))
    bits = 16.0 if reference else wbits + EXTRA_BITS.get(method, 0.0)
    psnr = (
        None if reference else PSNR.get(method, PSNR["ptq"])[min(wbits, 4) - 2] - (model == "tiny-dit") * 1.3
    )
    accuracy = 63 if reference else round(64 * min(0.97, max(0.05, (psnr - 11) / 14)))
    metrics = {
        "prompt_accuracy": Metric(
            accuracy / 64, max(0.0, accuracy / 64 - 0.08), min(1.0, accuracy / 64 + 0.04)
        ),
        "lpips": Metric(None, note="n/a: missing weights"),
        "fid": Metric(None, note="n/a: N < 256"),
        "kid": Metric(0.002 + draw.random() / 100),
        "precision": Metric(0.9),
        "recall": Metric(0.8),
    }
    if not reference:
        metrics |= {
            "psnr": Metric(psnr, psnr - 0.6, psnr + 0.6),
            "ssim": Metric(psnr / 32, psnr / 32 - 0.01, psnr / 32 + 0.01),
            "lpips_scene": Metric(1 / psnr),
            "fid_ref": Metric(None, note="n/a: N < 256"),
        }
    weights = WEIGHTS.get(model, 5_000_000)
    name = f"{model} {method} {wbits} {sorted(changes)}".encode("utf-8", "backslashreplace")
    identity = Identity(
        cell=hashlib.sha256(name).hexdigest()[:16],
        model=model, method=method, variant="default", config={}, dataset="scenes", protocol="main",
        protocol_hash="3f9a1c2b7d", seed=0, device="cpu", backend="reference", dtype="float32",
        wbits=16 if reference else wbits, abits=16 if reference or method == "nf4" else 8,
        reconstruction=method == "mpqdmv2",
    )  # fmt: skip
    result = Result(
        state="ok", execution="reference" if reference else "packed", n=64, effective_bits=bits,
        weight_bytes=round(weights * (bits * 0.97 + 16 * 0.03) / 8),
        checkpoint_bytes=round(weights * bits / 8) + 90_000, metrics=metrics, per_prompt={},
    )  # fmt: skip
    step = 21.4 if reference else 21.4 * (1.2 + draw.random() / 2)
    measured = Measured(
        peak_bytes=38_000_000 + draw.randrange(9_000_000), step_ms=step, step_ms_lo=step - 1,
        step_ms_hi=step + 1, step_ms_ref=21.4, generate_s=9.0,
        quantize_s=None if reference else 1 + 4 * draw.random(),
    )  # fmt: skip
    parts = {"identity": identity, "result": result, "measured": measured}
    for name, part in parts.items():
        parts[name] = replace(part, **{key: changes[key] for key in changes if hasattr(part, key)})
    return Record(**parts)


def make_grid() -> list[Record]:
    """Return two models × five methods × three bits and the references, in no useful order."""
    grid = [
        make_record(method, bits, model=model) for model in WEIGHTS for method in PSNR for bits in (2, 3, 4)
    ]
    grid += [make_record("reference", 16, model=model) for model in WEIGHTS]
    random.Random(0).shuffle(grid)
    return grid


def write_run(run: Path, records: list[Record]) -> None:
    """Write the records where a run keeps them."""
    for record in records:
        folder = run / "cells" / record.identity.cell
        folder.mkdir(parents=True)
        (folder / "record.json").write_text(json.dumps(record.to_json(), allow_nan=False))


@pytest.fixture(scope="session")
def record() -> Callable[..., Record]:
    return make_record


@pytest.fixture
def grid() -> list[Record]:
    return make_grid()


@pytest.fixture(scope="session")
def save() -> Callable[[Path, list[Record]], None]:
    return write_run
