"""Images are gone through part by part, whatever a prompt set compares them with."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.conformance.inputs import pair
from harness.datasets.coco import COCO
from harness.datasets.contract import Prompt
from harness.datasets.mjhq import MJHQ
from harness.errors import UserError
from harness.metrics.features import FeatureCache
from harness.metrics.images import PART, Array, Files
from harness.metrics.real_images import find_real
from harness.metrics.sources import WEIGHTS, Found
from harness.reduce import CellData, reduce_cell


@pytest.fixture(autouse=True)
def empty_caches(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("torch")))


def saved(images: np.ndarray, folder: Path) -> list[Path]:
    folder.mkdir()
    files = [folder / f"{i:03d}.png" for i in range(len(images))]
    for image, file in zip(images, files, strict=True):
        Image.fromarray(image).save(file)
    return files


def test_files_give_the_figures_of_arrays(tmp_path: Path) -> None:
    images, reference = pair(37, 24)
    prompts = [Prompt(f"p{i}", "a cat") for i in range(37)]
    whole = reduce_cell(CellData(images, None, prompts, reference, dataset="parti"))
    files = Files(saved(images, tmp_path / "a")), Files(saved(reference, tmp_path / "b"))
    streamed = reduce_cell(CellData(files[0], None, prompts, files[1], dataset="parti"))
    assert streamed == whole
    assert len(whole[1]["ssim"]) == 37


def test_no_more_than_one_part_is_in_memory(tmp_path: Path) -> None:
    n, side = 400, 64
    images, reference = pair(n, side)
    files = Files(saved(images, tmp_path / "a")), Files(saved(reference, tmp_path / "b"))
    held = images.nbytes
    del images, reference
    prompts = [Prompt(f"p{i}", "a cat") for i in range(n)]
    data = CellData(files[0], None, prompts, files[1], dataset="parti")
    reduce_cell(replace(data, prompts=prompts[:1], images=Array(pair(1, side)[0]), reference_images=None))
    tracemalloc.start()
    try:
        reduce_cell(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.75 * held  # two runs of 16 and one pair in float64; everything would be 2 * held


class Means:
    version = 1
    looked_at = 0

    def __init__(self, found: Found, device: str) -> None:
        pass

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        type(self).looked_at += len(images)
        return {"mean": images.mean(axis=(1, 2)).astype(np.float32)}


class Maxima(Means):
    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        return {"mean": images.max(axis=(1, 2)).astype(np.float32)}


def test_features_are_kept_by_part_so_that_a_larger_run_looks_at_what_is_new(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"1")
    found = Found(WEIGHTS["inception"], {"w.pth": tmp_path / "w.pth"}, True)
    images, _ = pair(3 * PART + 5, 8)
    files = saved(images, tmp_path / "a")
    cache = FeatureCache(tmp_path / "kept")
    first = cache.features(Means, 1, found, Files(files[: 2 * PART]))["mean"]
    seen = Means.looked_at
    larger = cache.features(Means, 1, found, Files(files))["mean"]
    assert Means.looked_at - seen == PART + 5
    np.testing.assert_array_equal(larger[: 2 * PART], first)
    np.testing.assert_allclose(larger, images.mean(axis=(1, 2)), rtol=1e-6)
    other = cache.features(Maxima, 1, found, Files(files))["mean"]  # another network on the same weights
    np.testing.assert_array_equal(other, images.max(axis=(1, 2)))
    np.testing.assert_array_equal(cache.features(Maxima, 1, found, Array(images))["mean"], other)


def mjhq(folder: Path, names: list[str]) -> tuple[list[Prompt], Path]:
    """Write MJHQ's file and the images of some of its prompts."""
    entries = {f"id{i}": {"category": "food", "prompt": f"dish {i}"} for i in range(4)}
    (folder / "meta_data.json").write_text(json.dumps(entries))
    images, _ = pair(4, 8)
    (folder / "mjhq30k_imgs" / "food").mkdir(parents=True)
    for name in names:
        Image.fromarray(images[int(name[2:])]).save(folder / "mjhq30k_imgs" / "food" / f"{name}.jpg")
    return MJHQ.prompts(4, folder), folder


def test_a_sets_own_images_are_the_real_ones(tmp_path: Path) -> None:
    prompts, folder = mjhq(tmp_path, ["id0", "id1", "id2", "id3"])
    real = find_real(prompts[1:3], "mjhq", {"mjhq": folder})
    assert real.source == "2 images of mjhq"
    (part,) = real.images.parts()
    decoded = [Image.open(folder / "mjhq30k_imgs" / "food" / f"id{i}.jpg") for i in (1, 2)]
    np.testing.assert_array_equal(next(part.batches()), np.stack([np.asarray(image) for image in decoded]))
    given = tmp_path / "given"
    saved(pair(3, 8)[0], given)
    paths = {"mjhq": folder, "reference-images": given}
    assert find_real(prompts, "mjhq", paths).source == "reference-images"


def test_missing_images_are_counted_in_the_figures_note(tmp_path: Path) -> None:
    prompts, folder = mjhq(tmp_path, ["id0", "id3"])
    real = find_real(prompts, "mjhq", {"mjhq": folder})
    assert real.images is None
    assert real.missing.startswith("n/a: no real images: 2 of 4 images of mjhq are not beside its file")
    assert "give --data-path reference-images" in find_real(prompts, "parti", {}).missing


def test_an_image_that_leads_out_of_the_sets_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    prompts, folder = mjhq(tmp_path / "set", ["id0", "id1", "id2"])
    Image.fromarray(pair(1, 8)[0][0]).save(tmp_path / "secret.jpg")
    (folder / "mjhq30k_imgs" / "food" / "id3.jpg").symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(UserError, match="leads out of its folder"):
        find_real(prompts, "mjhq", {"mjhq": folder})


def test_the_ids_of_coco_lead_to_its_own_folder(tmp_path: Path) -> None:
    content = {
        "images": [{"id": 7, "file_name": "000000000007.jpg"}],
        "annotations": [{"image_id": 7, "id": 1, "caption": "a dog"}],
    }
    file = tmp_path / "captions_val2017.json"
    file.write_text(json.dumps(content))
    (tmp_path / "val2017").mkdir()
    Image.fromarray(pair(1, 8)[0][0]).save(tmp_path / "val2017" / "000000000007.jpg")
    assert find_real(COCO.prompts(1, file), "coco", {"coco": file}).source == "1 images of coco"
