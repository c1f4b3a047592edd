import numpy as np
import pytest
import torch

from harness.compat import ensure_torchvision
from harness.metrics.distances import covered, neighbour_radii
from harness.metrics.fid import fid
from harness.metrics.fid_ref import fid_ref
from harness.metrics.kid import kid
from harness.metrics.precision import NEIGHBOURS, precision
from harness.metrics.recall import recall

ensure_torchvision()


def gaussian(n: int, d: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def test_fid_of_a_shifted_cloud_is_the_squared_shift() -> None:
    features = gaussian(400)
    shift = np.linspace(-1, 1, 8, dtype=np.float32)
    assert fid(features + shift, features) == pytest.approx(float(np.sum(shift**2)), rel=1e-5)


def test_fid_of_a_stretched_cloud_is_the_trace_of_its_covariance() -> None:
    features = gaussian(400).astype(np.float64)
    features -= features.mean(0)
    # Covariances S and 4 S commute: tr(S + 4 S - 2 * 2 S) = tr S.
    expected = float(np.trace(np.cov(features, rowvar=False)))
    assert fid(2 * features, features) == pytest.approx(expected, rel=1e-9)


def test_fid_agrees_with_a_symmetric_square_root() -> None:
    a, b = gaussian(300), gaussian(500, seed=1) @ np.diag(np.linspace(0.5, 2, 8)).astype(np.float32) + 0.3
    sa, sb = (np.cov(x.astype(np.float64), rowvar=False) for x in (a, b))
    values, vectors = np.linalg.eigh(sb)
    root = vectors @ np.diag(np.sqrt(values)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ sa @ root)).sum()
    shift = a.astype(np.float64).mean(0) - b.astype(np.float64).mean(0)
    expected = shift @ shift + np.trace(sa) + np.trace(sb) - 2 * cross
    assert fid(a, b) == pytest.approx(float(expected), rel=1e-9)


def test_fid_against_the_reference_model_vanishes_for_equal_features() -> None:
    features = gaussian(300)
    assert fid_ref(features, features.copy()) == pytest.approx(0.0, abs=1e-9)
    assert fid_ref(features + 1, features) == pytest.approx(8.0, rel=1e-5)


def test_kid_of_exactly_one_subset_is_the_unbiased_mmd() -> None:
    a, b = gaussian(256), gaussian(256, seed=1) + 0.2
    x, y = a.astype(np.float64), b.astype(np.float64)
    kernel = [(p @ q.T / 8 + 1) ** 3 for p, q in ((x, x), (y, y), (x, y))]
    off = ~np.eye(256, dtype=bool)
    expected = kernel[0][off].mean() + kernel[1][off].mean() - 2 * kernel[2].mean()
    assert kid(a, b) == pytest.approx(float(expected), rel=1e-9)


def test_kid_is_about_zero_for_one_distribution_and_grows_with_a_shift() -> None:
    a, b = gaussian(1000), gaussian(1000, seed=1)
    assert abs(kid(a, b)) < 0.02
    assert kid(a + 0.5, b) > 10 * abs(kid(a, b))


@pytest.mark.parametrize("spread", [0.7, 1.0, 1.6])
def test_precision_and_recall_equal_torch_fidelity(spread: float) -> None:
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    images, reference = gaussian(300) * np.float32(spread), gaussian(700, seed=1)
    radii = neighbour_radii(reference, NEIGHBOURS).astype(np.float32)
    expected = calculate_precision_recall_full(
        torch.from_numpy(images).double(), torch.from_numpy(reference).double()
    )
    found = precision(images, reference, radii), recall(images, reference)
    assert found == pytest.approx(expected, abs=1e-6)
    assert 0 < min(found) < 1


def test_precision_and_recall_of_points_on_a_line() -> None:
    reference = np.arange(10, dtype=np.float32)[:, None]
    # Third neighbours: 3 away at the ends, 2 away inside.
    assert neighbour_radii(reference, NEIGHBOURS).tolist() == [3, 2, 2, 2, 2, 2, 2, 2, 2, 3]
    images = np.array([-3.0, -3.5, 4.0, 30.0], np.float32)[:, None]
    radii = neighbour_radii(reference, NEIGHBOURS).astype(np.float32)
    assert covered(images, reference, radii).tolist() == [True, False, True, False]
    assert precision(images, reference, radii) == 0.5
    # The images' third neighbours: 33, 33.5, 26 and 33.5 away, so that all the line is covered.
    assert recall(images, reference) == 1.0


def test_dropped_modes_lower_recall_and_not_precision() -> None:
    left, right = gaussian(300), gaussian(300, seed=1) + 50
    reference = np.concatenate([left, right])
    radii = neighbour_radii(reference, NEIGHBOURS).astype(np.float32)
    images = gaussian(300, seed=2)
    assert precision(images, reference, radii) > 0.7
    assert recall(images, reference) < 0.51


def test_distances_are_cut_into_parts_without_a_seam() -> None:
    points = gaussian(1100, d=2)
    full = np.linalg.norm(points[:, None].astype(np.float64) - points[None].astype(np.float64), axis=2)
    np.testing.assert_allclose(neighbour_radii(points, NEIGHBOURS), np.sort(full, axis=1)[:, 3], rtol=1e-12)


def test_features_that_do_not_fit_are_refused() -> None:
    a = gaussian(300)
    with pytest.raises(ValueError, match="one d"):
        fid(a, a[:, :4])
    with pytest.raises(ValueError, match="n > 1"):
        fid(a[:1], a)
    with pytest.raises(ValueError, match="KID subset size"):
        kid(a[:100], a)
    with pytest.raises(ValueError, match="one radius per centre"):
        precision(a, a, np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="more than 3 rows"):
        recall(a[:3], a)
