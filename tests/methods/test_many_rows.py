"""svdquant on many calibration rows: bfloat16 samples in chunks, and decompositions by products alone."""

from __future__ import annotations

import layer_jobs as jobs
import pytest
import torch

from harness.methods import lowrank, objective, split
from harness.methods.objective import LayerSample


def matrix(kind: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(300, 200, generator=generator)
    if kind == "outliers":
        return noise * torch.exp(2 * torch.randn(200, generator=generator))
    if kind == "steep":
        return noise * torch.logspace(3, -6, 200)
    if kind == "rank 3":
        return noise[:, :3] @ torch.randn(3, 200, generator=generator)
    return noise * (kind == "flat")


@pytest.mark.parametrize("kind", ["flat", "outliers", "steep", "rank 3", "zero"])
def test_products_alone_find_nearly_the_best_directions(kind: str) -> None:
    m = matrix(kind)
    left = lowrank._gram_iteration(m, 16)
    assert left is not None
    rest = (m - left @ (left.T @ m)).double().norm()
    best = torch.linalg.svdvals(m.double())[16:].square().sum().sqrt()
    assert rest <= 1.02 * best + 1e-5 * m.norm()
    if kind in {"flat", "outliers", "steep"}:
        assert torch.allclose(left.T @ left, torch.eye(16), atol=1e-5)


def test_a_failed_factor_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lowrank, "_orthonormal", lambda columns: columns * float("nan"))
    assert lowrank._gram_iteration(matrix("flat"), 16) is None


def test_many_rows_in_chunks_change_results_by_rounding_only(monkeypatch: pytest.MonkeyPatch) -> None:
    x = {name: value.bfloat16().float() for name, value in jobs.inputs().items()}
    settings = {"grid": "9", "iterations": "3", "rows": "300", "residual": "narrow", "rank": "4"}
    plain = jobs.run("svdquant", jobs.job("svdquant", 4, x=x, a_bits=4), **settings)
    monkeypatch.setattr(objective, "HALF_ROWS", 100)
    monkeypatch.setattr(objective, "CHUNK_VALUES", 64 * 70)
    monkeypatch.setattr(split, "CHUNK_VALUES", 64 * 70)
    half = jobs.run("svdquant", jobs.job("svdquant", 4, x=x, a_bits=4), **settings)
    before, after = (jobs.output_error(job, x, jobs.Net()) for job in (plain, half))
    for name in ("q", "k", "down"):
        assert after[name] == pytest.approx(before[name], rel=0.05)
    assert LayerSample(jobs.Net().q, x["q"], 300).plain.dtype == torch.bfloat16


def test_a_half_error_is_the_float_error_nearly(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = jobs.Net(), jobs.inputs()["q"]
    sample = LayerSample(net.q, x, 300)
    (target,) = (t for t in jobs.job("svdquant", 4).targets if t.name == "q")
    piece = split.Piece((target,), (net.q,), net.q.weight.detach().float(), sample.target, 4)
    settings = _Settings()
    best = split.refine(piece, split.Inputs(None, sample.plain, sample.plain), settings)
    half = split.Inputs(None, sample.plain.bfloat16(), sample.plain.bfloat16())
    monkeypatch.setattr(split, "CHUNK_VALUES", 64 * 50)
    values = best.residual.values().bfloat16()
    error = split._half_error(piece.wanted.bfloat16(), half, best.branch, values)
    assert error == pytest.approx(best.error, rel=0.02)


class _Settings:
    iterations, early_stop, rescale, group = 1, True, True, 64
    svd, format, scales = "auto", "int", "float"

    def residual_grid(self, bits: int) -> str:
        return "narrow"

    def residual_range(self, bits: int) -> str:
        return "minmax"
