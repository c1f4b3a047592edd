import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.metrics import METRICS, check_data_paths
from harness.metrics.sources import WEIGHTS


def test_the_registry_loads_neither_torch_nor_scipy() -> None:
    code = "import sys, harness.metrics; print([m for m in ('torch', 'scipy', 'lpips') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_every_metric_has_a_file_with_a_function_of_its_name() -> None:
    for name, spec in METRICS.items():
        assert spec.name == name
        module = import_module(f"harness.metrics.{name}")
        assert callable(getattr(module, "lpips_distances" if name == "lpips" else name))


def test_what_the_specification_fixes() -> None:
    clouds = {
        "fid",
        "fid_ref",
        "fid_delta",
        "fid_clean",
        "fid_clean_ref",
        "sfid",
        "kid",
        "kid_delta",
        "cmmd",
        "fd_dinov2",
    }
    shares = {"precision", "recall", "density", "coverage", "inception_score"}
    assert {n for n, s in METRICS.items() if s.min_n == 256} == clouds | shares
    lpips = {"lpips", "lpips_vgg", "lpips_scene"}
    assert {n for n, s in METRICS.items() if s.paired} == {"psnr", "psnr_pooled", "ssim", "ms_ssim"} | lpips
    lower = {n for n, s in METRICS.items() if s.better == "lower"}
    assert lower == lpips | clouds
    assert {s.data for s in METRICS.values() if s.data} == set(WEIGHTS)


def test_paths_of_weights_are_checked_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lpips-alex.*not a file"):
        check_data_paths({"lpips-alex": tmp_path})
    (tmp_path / "ImageReward.pt").touch()
    with pytest.raises(UserError, match=r"holds no med_config.json, vocab.txt"):
        check_data_paths({"image-reward": tmp_path})
    (tmp_path / "med_config.json").touch()
    (tmp_path / "vocab.txt").touch()
    check_data_paths({"image-reward": tmp_path, "lpips-alex": tmp_path / "vocab.txt"})
    check_data_paths({"coco": tmp_path / "belongs to a prompt set"})
