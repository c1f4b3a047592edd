import numpy as np
import pytest
import torch

from harness.compat import ensure_torchvision
from harness.conformance import networks, pixels
from harness.conformance.check import Check, run
from harness.conformance.inputs import pair
from harness.conformance.suite import CHECKS
from harness.metrics import METRICS


def test_every_metric_has_a_golden_value() -> None:
    assert {check.metric for check in CHECKS} == set(METRICS)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: f"{check.metric}: {check.source}")
def test_every_golden_value_is_met(check: Check) -> None:
    (verdict,) = run([check])
    if verdict.outcome == "not run":
        pytest.skip(verdict.message)
    assert verdict.outcome == "ok", verdict


def test_the_stored_values_are_those_of_torchmetrics() -> None:
    ensure_torchvision()
    from torchmetrics.functional.image import (
        multiscale_structural_similarity_index_measure,
        structural_similarity_index_measure,
    )

    a, b = (torch.from_numpy(x).permute(0, 3, 1, 2).double() for x in pair(2, 176))
    stored = pixels._SSIM, pixels._MS_SSIM
    for ours, theirs in zip(
        stored,
        (structural_similarity_index_measure, multiscale_structural_similarity_index_measure),
        strict=True,
    ):
        expected = theirs(a, b, data_range=255.0, reduction="none").mean()
        assert ours == pytest.approx(float(expected), rel=1e-12)


def test_a_metric_that_changed_silently_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    psnr = next(check for check in CHECKS if check.metric == "psnr")
    assert not run([psnr])[0].failed
    monkeypatch.setattr("harness.metrics.psnr.PEAK", 256.0)
    (verdict,) = run([psnr])
    assert verdict.failed
    assert verdict.found != verdict.expected


def test_a_library_that_changed_its_network_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = next(check for check in networks.CHECKS if "pool" in check.source)
    monkeypatch.setattr(networks, "_inception", lambda: {"pool": networks._INCEPTION["pool"] * 1.001})
    assert run([pool])[0].failed


def test_one_check_that_breaks_does_not_stop_the_others() -> None:
    def absent() -> tuple[float, float]:
        raise ModuleNotFoundError("No module named 'odd'", name="odd")

    def broken() -> tuple[float, float]:
        raise AttributeError("gone\nfrom the library")

    checks = [
        Check("a", "x", absent), Check("b", "x", broken), Check("c", "x", lambda: (1.0, 1.0)),
        Check("d", "x", lambda: (float("nan"), 1.0)),
    ]  # fmt: skip
    verdicts = run(checks)
    assert [v.outcome for v in verdicts] == ["not run", "differs", "ok", "differs"]
    assert verdicts[0].message == "odd is not installed"
    assert verdicts[1].message == "AttributeError: gone from the library"
    assert [v.failed for v in verdicts] == [False, True, False, True]


def test_inputs_are_the_same_bytes_everywhere() -> None:
    images, reference = pair(1, 16)
    assert images.dtype == np.uint8
    assert reference.shape == (1, 16, 16, 3)
    assert np.abs(images.astype(int) - reference).mean() == pytest.approx(16, abs=2)  # 20 * sqrt(2 / pi)
