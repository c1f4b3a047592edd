"""Differences of FID and KID: against torch-fidelity, numerical derivatives, and coverage by simulation."""

import numpy as np
import pytest
import scipy.linalg

from harness.metrics import fid_delta as of_fid
from harness.metrics import kid_delta as of_kid
from harness.metrics.fid import gaussian
from harness.metrics.fid_delta import fid_delta
from harness.metrics.kid_delta import kid_delta

D = 6
SCALES = np.linspace(0.4, 1.5, D)


def pair(rng, n):
    """Two cells of the same noise: the second shrunken, shifted and a little noisy."""
    base = rng.normal(size=(n, D)) * SCALES
    moved = 0.9 * base + 0.15 + 0.3 * rng.normal(size=(n, D))
    return base, moved


def test_fid_delta_is_the_difference_of_distances_by_the_textbook_formula():
    rng = np.random.default_rng(0)
    a, b = pair(rng, 300)
    reference = rng.normal(size=(500, D))

    def fid(x):
        shift = x.mean(axis=0) - reference.mean(axis=0)
        own, other = np.cov(x, rowvar=False), np.cov(reference, rowvar=False)
        return shift @ shift + np.trace(own + other - 2 * scipy.linalg.sqrtm(own @ other).real)

    found = fid_delta(a, b, reference)
    assert found.value == pytest.approx(fid(a) - fid(b), abs=1e-9)
    assert found.lo < found.value < found.hi


def test_kid_delta_is_the_unbiased_estimate_written_out():
    rng = np.random.default_rng(1)
    a, b = pair(rng, 20)
    reference = rng.normal(size=(30, D))

    def mmd(x):
        inside = sum((x[i] @ x[j] / D + 1) ** 3 for i in range(20) for j in range(20) if i != j) / (20 * 19)
        across = np.mean([(row @ other / D + 1) ** 3 for row in x for other in reference])
        return inside - 2 * across

    assert kid_delta(a, b, reference).value == pytest.approx(mmd(a) - mmd(b), rel=1e-10)


def distances(weights, x, reference, kind):
    """The distance of rows with weights that sum to 1: what an influence function is the derivative of."""
    mean = weights @ x
    if kind == "fid":
        own = (x - mean).T @ ((x - mean) * weights[:, None])
        root = scipy.linalg.sqrtm(np.cov(reference, rowvar=False)).real
        shift = mean - reference.mean(axis=0)
        cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ own @ root), 0)).sum()
        return shift @ shift + np.trace(own) + np.trace(np.cov(reference, rowvar=False)) - 2 * cross
    kernel = (x @ x.T / D + 1) ** 3
    np.fill_diagonal(kernel, 0)  # as the unbiased estimate
    inside = weights @ kernel @ weights * len(x) / (len(x) - 1)
    return inside - 2 * weights @ ((x @ reference.T / D + 1) ** 3).mean(axis=1)


@pytest.mark.parametrize("kind", ["fid", "kid"])
def test_influences_are_derivatives_by_the_weight_of_a_row(kind):
    rng = np.random.default_rng(2)
    x, reference = pair(rng, 400)[1], rng.normal(size=(300, D))
    found = of_fid.influence(x, gaussian(reference)) if kind == "fid" else of_kid.influence(x, reference)
    even, step = np.full(400, 1 / 400), 1e-6
    for row in (0, 17, 399):
        towards = (1 - step) * even + step * np.eye(400)[row]
        away = (1 + step) * even - step * np.eye(400)[row]
        slope = (distances(towards, x, reference, kind) - distances(away, x, reference, kind)) / (2 * step)
        assert found[row] == pytest.approx(slope, rel=0.03, abs=0.02)


@pytest.mark.parametrize("difference", [fid_delta, kid_delta])
def test_intervals_cover_the_difference_of_populations(difference):
    reference = np.random.default_rng(3).normal(size=(400, D))
    large = pair(np.random.default_rng(4), 200_000 if difference is fid_delta else 2000)
    truth = difference(*large, reference).value
    times = 200 if difference is fid_delta else 100
    found = [difference(*pair(np.random.default_rng(100 + k), 256), reference) for k in range(times)]
    share = np.mean([interval.lo <= truth <= interval.hi for interval in found])
    assert 0.91 <= share <= 0.98


def test_a_cell_compared_with_itself_differs_by_nothing():
    rng = np.random.default_rng(5)
    a, reference = rng.normal(size=(40, D)), rng.normal(size=(50, D))
    for difference in (fid_delta, kid_delta):
        assert difference(a, a, reference) == (0.0, 0.0, 0.0)


def test_fewer_rows_than_features_still_give_a_finite_interval():
    rng = np.random.default_rng(6)
    wide = rng.normal(size=(12, 30))
    found = fid_delta(wide, wide + 0.2 * rng.normal(size=(12, 30)), rng.normal(size=(80, 30)))
    assert np.isfinite(found).all()


@pytest.mark.parametrize("delta", [fid_delta, kid_delta])
@pytest.mark.parametrize(("a", "b", "real"), [
    ((4, 3), (5, 3), (9, 3)),
    ((4, 3), (4, 3), (9, 2)),
    ((1, 3), (1, 3), (9, 3)),
])  # fmt: skip
def test_shapes_that_do_not_belong_together_are_refused(delta, a, b, real):
    with pytest.raises(ValueError, match=r"not paired|one d, got"):
        delta(np.zeros(a), np.zeros(b), np.zeros(real))
