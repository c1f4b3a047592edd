import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist

from harness.compat import ensure_torchvision
from harness.metrics.cmmd import cmmd, cmmd_biased
from harness.metrics.coverage import coverage
from harness.metrics.density import density
from harness.metrics.distances import distance_parts, neighbour_radii
from harness.metrics.fid import fid, gaussian_of
from harness.metrics.fid_delta import fid_delta, influence
from harness.metrics.inception_score import inception_score
from harness.metrics.sfid import sfid

ensure_torchvision()


def cloud(n: int, d: int, seed: int, spread: float = 1.0, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    scale = np.linspace(0.1, 2, d) * spread
    return (rng.normal(size=(n, d)) * scale + shift).astype(np.float32)


def by_matrix_root(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    sa, sb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    shift = a.mean(0) - b.mean(0)
    return float(shift @ shift + np.trace(sa + sb - 2 * sqrtm(sa @ sb).real))


def test_fid_equals_the_matrix_square_root() -> None:
    a, b = cloud(200, 48, 1, 1.2, 0.2), cloud(300, 48, 2)
    assert fid(a, b) == pytest.approx(by_matrix_root(a, b), rel=1e-9)


def test_fid_of_fewer_images_than_features_equals_torch_fidelity() -> None:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    a, b = cloud(20, 48, 1, 1.2, 0.2), cloud(300, 48, 2)
    for x, y in ((a, b), (b, a), (a, b[:30])):
        moments = [fid_features_to_statistics(torch.from_numpy(z).double()) for z in (x, y)]
        (expected,) = fid_statistics_to_metric(*moments, verbose=False).values()
        assert fid(x, y) == pytest.approx(expected, rel=1e-4)


def test_fid_against_moments_is_that_against_their_images() -> None:
    a, b = cloud(200, 16, 1, 1.2), cloud(300, 16, 2)
    wide = b.astype(np.float64)
    moments = gaussian_of(wide.mean(0), np.cov(wide, rowvar=False))
    assert fid(a, moments) == pytest.approx(fid(a, b), rel=1e-12)
    with pytest.raises(ValueError, match=r"\[n, 16\]"):
        fid(a[:, :5], moments)


def test_fid_against_singular_moments() -> None:
    line = np.zeros((3, 3))
    line[0, 0] = 4.0
    # tr(I + S - 2 S^½) = 3 + 4 - 2 * 2, for features with covariance I.
    corners = np.array(np.meshgrid(*[[-1.0, 1.0]] * 3)).reshape(3, -1).T * math.sqrt(7 / 8)
    assert fid(corners, gaussian_of(np.zeros(3), line)) == pytest.approx(3.0, rel=1e-9)


def test_sfid_takes_spatial_features_only() -> None:
    rows = np.random.default_rng(0).normal(size=(12, 2023))
    assert sfid(rows + 0.1, rows) == pytest.approx(20.23, rel=1e-9)
    with pytest.raises(ValueError, match="2023 spatial features"):
        sfid(rows[:, :64], rows[:, :64])


def test_influence_is_the_derivative_of_fid_in_the_weight_of_a_row() -> None:
    x, real = cloud(60, 5, 1, 1.3, 0.3).astype(np.float64), cloud(80, 5, 2)
    moments = gaussian_of(real.astype(np.float64).mean(0), np.cov(real.astype(np.float64), rowvar=False))

    def weighted(weights: np.ndarray) -> float:
        p = weights / weights.sum()
        mean = p @ x
        covariance = (x - mean).T @ np.diag(p) @ (x - mean)
        cross = sqrtm(covariance @ (moments.factor.T @ moments.factor)).real
        shift = mean - moments.mean
        return float(shift @ shift + np.trace(covariance) + moments.trace - 2 * np.trace(cross))

    found = influence(x, moments)
    assert found.sum() == pytest.approx(0, abs=1e-9)
    for row in (0, 17, 59):
        more, less = np.ones(60), np.ones(60)
        more[row] += 1e-4
        less[row] -= 1e-4
        slope = (weighted(more) - weighted(less)) / 2e-4 * 60
        assert found[row] == pytest.approx(slope, rel=1e-5, abs=1e-6)


def test_fid_delta_is_a_difference_and_its_interval_is_paired() -> None:
    base, real = cloud(400, 12, 1), cloud(500, 12, 2)
    noise = np.random.default_rng(3).normal(size=base.shape).astype(np.float32)
    near = base + np.float32(0.05) * noise
    value, lo, hi = fid_delta(near, base, real)
    assert value == pytest.approx(fid(near, real) - fid(base, real), rel=1e-9)
    assert lo < value < hi
    shuffled = near[np.random.default_rng(4).permutation(400)]
    loose = fid_delta(shuffled, base, real)
    assert loose.value == pytest.approx(value, rel=1e-9)
    assert loose.hi - loose.lo > 3 * (hi - lo)
    assert fid_delta(base, base, real) == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="not paired"):
        fid_delta(near[:300], base, real)


def test_the_inception_score_of_sure_and_of_unsure_networks() -> None:
    unsure = np.zeros((50, 7), np.float32)
    assert inception_score(unsure) == pytest.approx(1.0, rel=1e-12)
    # Sure of four classes in turn: every split of 40 shuffled images holds nearly all of them.
    sure = 200 * np.eye(4, dtype=np.float32)[np.arange(4000) % 4]
    assert inception_score(sure) == pytest.approx(4.0, rel=1e-2)
    # Sorted by class it would be 1 without the shuffle.
    assert inception_score(sure[np.argsort(np.arange(4000) % 4, kind="stable")]) > 3.9
    with pytest.raises(ValueError, match="at least 10 images"):
        inception_score(unsure[:9])


def test_density_and_coverage_by_their_definition() -> None:
    a, b = cloud(60, 3, 1, 1.1), cloud(80, 3, 2)
    between, within = cdist(a, b), np.sort(cdist(b, b), axis=1)[:, 5]
    assert density(a, b) == pytest.approx((between <= within).sum() / (5 * 60), rel=1e-12)
    assert coverage(a, b) == pytest.approx((between.min(axis=0) <= within).mean(), rel=1e-12)
    assert 0 < coverage(a, b) < 1


def test_wide_features_have_the_distances_of_narrow_ones() -> None:
    a, b = cloud(700, 300, 1, shift=50), cloud(40, 300, 2, shift=50)
    found = np.concatenate(list(distance_parts(a, b)))
    np.testing.assert_allclose(found, cdist(a, b), rtol=1e-9)
    np.testing.assert_allclose(neighbour_radii(b, 3), np.sort(cdist(b, b), axis=1)[:, 3], rtol=1e-9)


def test_cmmd_by_its_definition() -> None:
    a, b = (
        x / np.linalg.norm(x, axis=1, keepdims=True) for x in (cloud(30, 8, 1, shift=0.3), cloud(40, 8, 2))
    )
    k = [np.exp(-cdist(x, y, "sqeuclidean") / 200) for x, y in ((a, a), (b, b), (a, b))]
    biased = 1000 * (k[0].mean() + k[1].mean() - 2 * k[2].mean())
    assert cmmd_biased(a, b) == pytest.approx(biased, rel=1e-6)
    off = [x[~np.eye(len(x), dtype=bool)].mean() for x in k[:2]]
    assert cmmd(a, b) == pytest.approx(1000 * (sum(off) - 2 * k[2].mean()), rel=1e-6)


def test_cmmd_is_unbiased() -> None:
    rng = np.random.default_rng(0)
    found = [cmmd(rng.normal(size=(20, 4)), rng.normal(size=(20, 4))) for _ in range(300)]
    assert abs(np.mean(found)) < 4 * np.std(found) / math.sqrt(300)
