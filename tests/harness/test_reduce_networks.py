"""Figures of prompt sets of natural images, through `reduce_cell`."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.conformance.inputs import pair, pictures
from harness.conformance.networks import write_clip
from harness.datasets.contract import Prompt
from harness.metrics.extractors.inception import LOGITS, POOL, SPATIAL
from harness.metrics.fid import fid
from harness.reduce import CellData, reduce_cell


class SmallInception:
    """Means of quarters instead of a network."""

    version = 1
    passes = 0

    def __init__(self, found: object, device: str) -> None:
        pass

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        type(self).passes += len(images)
        quarters = images.reshape(len(images), 2, 8, 2, 8, 3).mean(axis=(2, 4)).reshape(len(images), 12) / 50
        spatial = np.repeat(quarters[:, :7], 289, axis=1)
        return {
            k: v.astype(np.float32) for k, v in ((POOL, quarters), (SPATIAL, spatial), (LOGITS, quarters))
        }


class SmallClean(SmallInception):
    """Another feature of the same images."""

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        return {POOL: np.sqrt(super().__call__(images)[POOL])}


@pytest.fixture(autouse=True)
def empty_caches(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("torch")))
    monkeypatch.setattr("harness.figures.distributions.Inception", SmallInception)
    monkeypatch.setattr("harness.figures.distributions.CleanInception", SmallClean)


def cell(n: int, **changes: object) -> CellData:
    images, reference = pair(n, 16)
    prompts = [Prompt(f"p{i}", "a cat") for i in range(n)]
    return replace(CellData(images, None, prompts, reference, dataset="mjhq"), **changes)


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, Path]:
    real = tmp_path / "real"
    real.mkdir()
    for i, image in enumerate(pictures(260, 16, seed=5)):
        Image.fromarray(image).save(real / f"{i:03d}.png")
    (tmp_path / "inception.pth").write_bytes(b"weights")
    return {"reference-images": real, "inception": tmp_path / "inception.pth"}


def features(images: np.ndarray) -> np.ndarray:
    return SmallInception(None, "cpu")(images)[POOL]


def test_distributions_are_formed_against_the_real_images(paths: dict[str, Path], tmp_path: Path) -> None:
    data = cell(256, data_paths=paths, cache=tmp_path / "features")
    metrics, _ = reduce_cell(data)
    real = pictures(260, 16, seed=5)
    expected = fid(features(data.images), features(real))
    assert metrics["fid"].value == pytest.approx(expected, rel=1e-6)
    assert "(not the published file)" in metrics["fid"].note
    theirs = fid(features(data.reference_images), features(real))
    assert metrics["fid_delta"].value == pytest.approx(expected - theirs, rel=1e-5)
    assert metrics["fid_delta"].lo < metrics["fid_delta"].value < metrics["fid_delta"].hi
    for name in ("kid", "precision", "recall", "density", "coverage", "sfid", "inception_score", "fid_ref"):
        assert metrics[name].value is not None, name
    assert metrics["lpips_scene"].note == "n/a: dataset is not scenes"
    seen = SmallInception.passes
    assert reduce_cell(data)[0] == metrics
    assert SmallInception.passes == seen


def test_the_reference_itself_has_a_fid_but_no_difference(paths: dict[str, Path]) -> None:
    metrics, _ = reduce_cell(cell(256, data_paths=paths, reference_images=None))
    assert metrics["fid"].value is not None
    assert metrics["fid_delta"].note == metrics["fid_ref"].note == "n/a: no reference"


def test_what_is_missing_is_named(paths: dict[str, Path]) -> None:
    metrics, _ = reduce_cell(cell(256))
    assert "weights-inception-2015-12-05-6726825d.pth" in metrics["fid"].note
    metrics, _ = reduce_cell(cell(256, data_paths={"inception": paths["inception"]}))
    assert metrics["fid"].note.startswith("n/a: no real images: give --data-path reference-images=")
    assert metrics["fid_ref"].value is not None
    assert metrics["inception_score"].value is not None
    metrics, _ = reduce_cell(cell(255, data_paths=paths))
    assert metrics["sfid"].note == "n/a: N < 256"


def test_moments_alone_give_fid_and_sfid(paths: dict[str, Path], tmp_path: Path) -> None:
    real = pictures(260, 16, seed=5)
    rows = features(real).astype(np.float64)
    file = tmp_path / "ref.npz"
    np.savez(file, mu=rows.mean(0), sigma=np.cov(rows, rowvar=False))
    data = cell(256, data_paths={**paths, "reference-images": file})
    metrics, _ = reduce_cell(data)
    assert metrics["fid"].value == pytest.approx(fid(features(data.images), features(real)), rel=1e-6)
    assert metrics["kid"].note == metrics["sfid"].note == "n/a: the .npz holds moments, not images"


def test_clip_scores_every_image_with_its_own_prompt(tmp_path: Path) -> None:
    write_clip(tmp_path)
    prompts = [Prompt("0", "a cat"), Prompt("1", "zzz? 4 dogs"), Prompt("2", "a cat")]
    data = cell(3, prompts=prompts, data_paths={"clip": tmp_path})
    metrics, per_prompt = reduce_cell(data)
    scores = per_prompt["clip_score"]
    assert metrics["clip_score"].value == pytest.approx(np.mean(scores), rel=1e-6)
    assert metrics["clip_score"].note.startswith("model.safetensors sha256 ")
    _, again = reduce_cell(replace(data, prompts=[prompts[1], prompts[0], prompts[2]]))
    assert again["clip_score"][2] == scores[2]
    assert again["clip_score"][0] != scores[0]
    assert again["clip_iqa"] == per_prompt["clip_iqa"]
    assert all(0 < value < 1 for value in per_prompt["clip_iqa"])


def test_pooled_psnr_counts_identical_pairs_and_ms_ssim_needs_large_images() -> None:
    data = cell(2)
    data.images[0] = data.reference_images[0]
    metrics, _ = reduce_cell(data)
    error = (data.images[1].astype(float) - data.reference_images[1]) ** 2
    assert metrics["psnr_pooled"].value == pytest.approx(10 * np.log10(255**2 / (error.mean() / 2)), rel=1e-7)
    assert metrics["ms_ssim"].note == "n/a: image too small"
    data.images[1] = data.reference_images[1]
    assert reduce_cell(data)[0]["psnr_pooled"].note == "n/a: identical to the reference"
    large, reference = pair(1, 161)
    found = reduce_cell(cell(1, images=large, reference_images=reference))[0]
    assert 0 < found["ms_ssim"].value < 1
