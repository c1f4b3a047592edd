import json
import math
import subprocess
import sys

import pytest

import harness.reports
from harness.reports.record import Metric
from harness.reports.rows import columns, grouped, row, sort_records

CONTRACT = """cell, model, method, variant, config, dataset, protocol, seed, n, device, backend, wbits, abits, state,
execution, effective_bits, weight_bytes, checkpoint_bytes, peak_bytes, psnr, psnr_lo, psnr_hi, ssim, ssim_lo, ssim_hi,
lpips_scene, fid, fid_ref, kid, precision, recall, prompt_accuracy, prompt_accuracy_lo, prompt_accuracy_hi, step_ms,
step_ms_ref, quantize_s"""  # noqa: E501


def test_row_has_every_key_of_the_contract_even_when_everything_failed(record):
    flat = row(record(state="crashed", metrics={}, effective_bits=None, peak_bytes=None))
    assert {key.strip() for key in CONTRACT.split(",")} <= set(flat)
    assert list(flat) == columns()
    assert flat["psnr"] is None
    assert flat["state"] == "crashed"


def test_figures_keep_their_values_and_infinities_become_none(record):
    metrics = {
        "psnr": Metric(math.inf, 20.0, math.nan),
        "fid": Metric(None, note="n/a: N < 256"),
        "prompt_accuracy": Metric(0.75, 0.6, 0.9),
    }
    flat = row(record(metrics=metrics, step_ms=math.nan, config={"range": "mse", "x": math.inf}))
    assert (flat["psnr"], flat["psnr_lo"], flat["psnr_hi"]) == (None, 20.0, None)
    assert (flat["prompt_accuracy"], flat["prompt_accuracy_lo"], flat["prompt_accuracy_hi"]) == (
        0.75,
        0.6,
        0.9,
    )
    assert flat["step_ms"] is None
    assert flat["config"] == {"range": "mse", "x": None}
    assert flat["notes"] == {"fid": "n/a: N < 256"}
    json.dumps(flat, allow_nan=False)


def test_further_metrics_follow_and_cannot_take_a_column(record):
    flat = row(record(metrics={"hue": Metric(1.0, 0.5, 1.5), "grain": Metric(2.0)}))
    assert (flat["hue"], flat["hue_lo"], flat["hue_hi"], flat["grain"]) == (1.0, 0.5, 1.5, 2.0)
    assert "grain_lo" not in flat
    for name in ("state", "notes", "psnr_lo"):
        with pytest.raises(ValueError, match=f"called like the column '{name}'"):
            row(record(metrics={name: Metric(1.0)}))


def test_order_is_reference_then_effective_bits_then_failures(record):
    # Nominal 3 bits of nf4 store more than nominal 3 of ptq, and less than svdquant's 3.
    cells = [
        record("svdquant", 3),
        record("ptq", 2, variant="range=minmax", effective_bits=None, state="oom"),
        record("nf4", 3),
        record("ptq", 4),
        record("reference", 16),
        record("ptq", 3, model="a-model"),
        record("ptq", 3),
    ]
    names = [(c.identity.model, c.identity.method, c.result.effective_bits) for c in sort_records(cells)]
    assert names == [
        ("a-model", "ptq", 3.03),
        ("tiny-unet", "reference", 16.0),
        ("tiny-unet", "ptq", 3.03),
        ("tiny-unet", "nf4", 3.5),
        ("tiny-unet", "svdquant", 3.62),
        ("tiny-unet", "ptq", 4.03),
        ("tiny-unet", "ptq", None),
    ]


def test_prompt_sets_and_devices_are_apart(record):
    cells = [record(dataset="b"), record(device="cuda"), record(dataset="b", method="reference")]
    assert list(grouped(cells)) == [("tiny-unet", "b", "cpu"), ("tiny-unet", "scenes", "cuda")]


def test_load_gives_a_typed_frame(tmp_path, grid, save, record):
    failed = record("ptq", 1, state="oom", metrics={"hue": Metric(None)}, weight_bytes=None)
    save(tmp_path, [*grid, failed])
    frame = harness.reports.load(tmp_path)
    assert len(frame) == 33
    assert list(frame.columns) == [*columns(), "hue"]
    assert str(frame["weight_bytes"].dtype) == "Int64"
    assert str(frame["psnr_lo"].dtype) == "float64"
    assert frame["method"].iloc[0] == "reference"
    best = frame[(frame["model"] == "tiny-unet") & (frame["method"] == "svdquant") & (frame["wbits"] == 4)]
    assert best["psnr"].item() == 30.8
    assert frame["weight_bytes"].isna().sum() == 1
    assert frame["fid"].isna().all()


def test_load_of_a_run_without_finished_cells(tmp_path):
    (tmp_path / "cells").mkdir()
    frame = harness.reports.load(tmp_path)
    assert frame.empty
    assert list(frame.columns) == columns()


def test_reports_import_no_torch_and_nothing_of_the_rest():
    code = (
        "import sys, harness.reports.pictures, harness.reports.statistics\n"
        "from harness.reports.formats import FORMATS, render\n"
        "[render([], name) for name in FORMATS]\n"
        "ours = [m for m in sys.modules if m.startswith('harness.')]\n"
        "rest = [m for m in ours if not m.startswith('harness.reports')]\n"
        "assert 'torch' not in sys.modules and 'diffusers' not in sys.modules and not rest, rest\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
