"""clean-fid's resizing and the pass through Inception that follows it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from harness.conformance.inputs import pictures
from harness.conformance.networks import inception_weights
from harness.conformance.pixels import cubic_filter
from harness.metrics.extractors.inception import POOL, Inception
from harness.metrics.extractors.inception_clean import CleanInception, clean_resize
from harness.metrics.sources import find


@pytest.mark.parametrize("size", [(400, 150), (299, 299), (64, 1024)])
def test_it_is_the_antialiased_cubic_filter_in_floats(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    down, across = (cubic_filter(side, 299) for side in size)
    expected = np.einsum("ij,jkc,lk->ilc", down, image.astype(float), across, optimize=True)
    found = clean_resize(image)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.clip(expected, 0, 255), atol=2e-4)


def test_nothing_is_rounded_and_overshoot_is_cut_off() -> None:
    edge = np.zeros((512, 512, 3), np.uint8)
    edge[:, 256:] = 255
    found = clean_resize(edge)
    assert found.min() == 0.0
    assert found.max() == 255.0
    between = found[(found > 0) & (found < 255)]
    assert between.size
    assert (between != np.rint(between)).any()


def test_the_filter_keeps_constants_and_averages_fine_detail_away() -> None:
    assert np.abs(clean_resize(np.full((700, 300, 3), 77, np.uint8)) - 77).max() < 1e-4
    stripes = np.zeros((1196, 1196, 3), np.uint8)  # four times as large: two rows light, two rows dark
    stripes[np.arange(1196) % 4 < 2] = 200
    inner = clean_resize(stripes)[20:-20]
    assert np.abs(inner - 100).max() < 1.0


def test_an_image_of_the_networks_size_passes_as_through_the_plain_extractor(tmp_path: Path) -> None:
    file = tmp_path / "inception.pth"
    torch.save(inception_weights(), file)
    found = find("inception", {"inception": file})
    images = pictures(1, 299)
    clean, plain = CleanInception(found), Inception(found)
    np.testing.assert_allclose(clean(images)[POOL], plain(images)[POOL], rtol=1e-4, atol=1e-6)
    other = pictures(1, 400)
    assert np.abs(clean(other)[POOL] - plain(other)[POOL]).max() > 1e-3
