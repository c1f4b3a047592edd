import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from harness.metrics.psnr import psnr
from harness.metrics.ssim import ssim


def noisy_pair(side: tuple[int, int] = (64, 64), n: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: side[0], : side[1]]
    smooth = 128 + 90 * np.sin(x / 7)[..., None] * np.cos(y / 5)[..., None] * np.array([1.0, 0.5, -0.8])
    clean = np.repeat(smooth[None], n, axis=0)
    sigma = np.arange(1, n + 1)[:, None, None, None] * 6.0
    noisy = clean + rng.normal(size=clean.shape) * sigma
    return tuple(np.clip(a, 0, 255).astype(np.uint8) for a in (noisy, clean))


def test_psnr_of_a_constant_error_has_a_closed_form() -> None:
    reference = np.full((2, 8, 8, 3), 100, np.uint8)
    images = np.stack([reference[0] + 5, reference[1] - 20])
    expected = [20 * math.log10(255 / 5), 20 * math.log10(255 / 20)]
    np.testing.assert_allclose(psnr(images, reference), expected, rtol=1e-12)


def test_psnr_does_not_wrap_around_in_uint8() -> None:
    black, white = np.zeros((1, 4, 4, 3), np.uint8), np.full((1, 4, 4, 3), 255, np.uint8)
    assert psnr(black, white)[0] == pytest.approx(0.0, abs=1e-12)
    assert psnr(white, black)[0] == pytest.approx(0.0, abs=1e-12)


def test_psnr_of_identical_images_is_infinite_for_that_image_alone() -> None:
    images, reference = noisy_pair(n=3)
    images[1] = reference[1]
    assert np.isinf(psnr(images, reference)).tolist() == [False, True, False]


@settings(max_examples=30, deadline=None)
@given(arrays(np.uint8, (1, 5, 4, 3)), arrays(np.uint8, (1, 5, 4, 3)), st.integers(0, 59))
def test_psnr_is_symmetric_and_falls_with_more_error(a: np.ndarray, b: np.ndarray, where: int) -> None:
    assert psnr(a, b)[0] == psnr(b, a)[0]
    worse = a.copy().reshape(-1)
    target = b.reshape(-1)[where]
    worse[where] = 0 if target > 127 else 255
    assert psnr(worse.reshape(a.shape), b)[0] <= psnr(a, b)[0]


@pytest.mark.parametrize("side", [(64, 64), (11, 11), (33, 47)])
def test_ssim_and_psnr_agree_with_torchmetrics(side: tuple[int, int]) -> None:
    from harness.compat import ensure_torchvision

    ensure_torchvision()
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    images, reference = noisy_pair(side)
    a, b = (torch.from_numpy(x).permute(0, 3, 1, 2).double() for x in (images, reference))
    expected = structural_similarity_index_measure(a, b, data_range=255.0, reduction="none")
    np.testing.assert_allclose(ssim(images, reference), expected.numpy(), rtol=1e-9)
    expected = peak_signal_noise_ratio(a, b, data_range=255.0, reduction="none", dim=(1, 2, 3))
    np.testing.assert_allclose(psnr(images, reference), expected.numpy(), rtol=1e-6)


def test_ssim_of_flat_images_has_a_closed_form() -> None:
    a, b = 60.0, 200.0
    c1 = (0.01 * 255) ** 2
    flat = [np.full((1, 16, 16, 3), value, np.uint8) for value in (a, b)]
    assert ssim(*flat)[0] == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1), rel=1e-9)
    assert ssim(flat[0], flat[0])[0] == pytest.approx(1.0, rel=1e-12)


def test_ssim_falls_as_noise_grows() -> None:
    values = ssim(*noisy_pair())
    assert np.all(np.diff(values) < 0)
    assert np.all(values < 1)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_unpaired_or_wrongly_typed_images_are_refused(metric) -> None:
    good = np.zeros((2, 16, 16, 3), np.uint8)
    with pytest.raises(ValueError, match="paired"):
        metric(good, good[:1])
    with pytest.raises(ValueError, match="uint8"):
        metric(good.astype(np.float32), good)


def test_ssim_refuses_images_below_its_window() -> None:
    small = np.zeros((1, 10, 64, 3), np.uint8)
    with pytest.raises(ValueError, match="11x11"):
        ssim(small, small)
