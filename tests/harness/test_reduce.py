import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.datasets.contract import Prompt
from harness.errors import UserError
from harness.metrics import METRICS
from harness.metrics.fid import fid
from harness.metrics.scene import SceneWorld
from harness.reduce import CellData, reduce_cell

DISTRIBUTIONS = {"fid", "fid_ref", "fid_delta", "kid", "kid_delta", "precision", "recall"}


@pytest.fixture(autouse=True)
def empty_caches(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("torch")))


class Reading(NamedTuple):
    features: Tensor
    stages: tuple[Tensor, ...]


def read(images: Tensor) -> Reading:
    """A recogniser whose features are means of 16x16 cells and whose one stage is the image at a quarter."""
    cells = torch.nn.functional.avg_pool2d(images, 16).flatten(1)
    return Reading(torch.cat([cells, cells[:, :16] ** 2], 1), (torch.nn.functional.avg_pool2d(images, 4),))


def judge(reading: Reading, prompts: list[Prompt]) -> list[bool]:
    """An image is right when its first cell's mean is at least the prompt's fact."""
    return [bool(f[0] >= p.facts["level"]) for f, p in zip(reading.features, prompts, strict=True)]


def rendered() -> np.ndarray:
    return np.random.default_rng(9).integers(0, 256, (600, 64, 64, 3), dtype=np.uint8)


def test_fid_and_kid_are_the_means_of_what_each_prompt_adds(world: SceneWorld) -> None:
    data = cell(256)
    metrics, values = reduce_cell(data, world)
    for name in ("fid", "kid"):
        found = np.array(values[name])
        assert found.shape == (256,)
        assert found.mean() == pytest.approx(metrics[name].value, abs=1e-6)
        assert metrics[name].lo is None
    # Taking an image away moves the figure against its influence, by about a part in n.
    influence = np.array(values["fid"]) - metrics["fid"].value
    for index in (int(influence.argmax()), int(influence.argmin())):
        left = [i for i in range(256) if i != index]
        pixels = torch.from_numpy(data.images).permute(0, 3, 1, 2).float() / 255
        features = world.recogniser(pixels).features.numpy()
        moved = fid(features[left], world.reference_features().numpy()) - metrics["fid"].value
        assert np.sign(moved) == -np.sign(influence[index])
    assert "fid" not in reduce_cell(cell(20), world)[1]


@pytest.fixture(scope="module")
def world() -> SceneWorld:
    features = read(torch.from_numpy(rendered()).permute(0, 3, 1, 2).float() / 255).features
    radii = torch.cdist(features.double(), features.double()).kthvalue(4).values.float()
    return SceneWorld(read, judge, lambda: features, lambda: radii)


def cell(n: int, level: float = 0.0, **changes: object) -> CellData:
    rng = np.random.default_rng(0)
    reference = rng.integers(0, 256, (n, 64, 64, 3), dtype=np.uint8)
    images = np.clip(reference.astype(int) + rng.integers(-20, 21, reference.shape), 0, 255).astype(np.uint8)
    prompts = [Prompt(f"p{i}", "a red circle", {"level": level}) for i in range(n)]
    return replace(CellData(images, None, prompts, reference), **changes)


def features_of(images: np.ndarray) -> np.ndarray:
    return read(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255).features.numpy()


def test_every_metric_is_there_in_order_and_json_has_no_nan(world: SceneWorld) -> None:
    metrics, per_prompt = reduce_cell(cell(5), world)
    assert list(metrics) == list(METRICS)
    json.dumps([{k: asdict(m) for k, m in metrics.items()}, per_prompt], allow_nan=False)
    assert set(per_prompt) == {"psnr", "ssim", "lpips_scene", "prompt_accuracy"}
    assert all(len(values) == 5 for values in per_prompt.values())
    for metric in metrics.values():
        assert (metric.value is None) == (metric.note is not None)


def test_paired_figures_are_the_mean_with_students_interval(world: SceneWorld) -> None:
    from scipy.stats import t

    data = cell(7)
    metrics, per_prompt = reduce_cell(data, world)
    error = (data.images.astype(float) - data.reference_images.astype(float)).reshape(7, -1)
    values = 10 * np.log10(255**2 / np.mean(error**2, axis=1))
    np.testing.assert_allclose(per_prompt["psnr"], values, rtol=1e-7)
    half = t.ppf(0.975, 6) * values.std(ddof=1) / np.sqrt(7)
    found = metrics["psnr"]
    assert (found.value, found.lo, found.hi) == pytest.approx(
        (values.mean(), values.mean() - half, values.mean() + half), rel=1e-7
    )


def test_an_identical_pair_is_null_and_does_not_swallow_the_mean(world: SceneWorld) -> None:
    data = cell(4)
    data.images[2] = data.reference_images[2]
    metrics, per_prompt = reduce_cell(data, world)
    assert [v is None for v in per_prompt["psnr"]] == [False, False, True, False]
    others = [v for v in per_prompt["psnr"] if v is not None]
    assert metrics["psnr"].value == pytest.approx(np.mean(others), rel=1e-7)
    assert metrics["psnr"].note == "1 of 4 images identical to the reference, left out"
    assert per_prompt["ssim"][2] == 1.0
    assert per_prompt["lpips_scene"][2] == 0.0


def test_an_interval_of_ssim_ends_at_one(world: SceneWorld) -> None:
    data = cell(3)
    data.images[:2] = data.reference_images[:2]
    found = reduce_cell(data, world)[0]["ssim"]
    assert found.value is not None
    assert found.lo is not None
    assert found.hi == 1.0
    # Symmetric, it would end above one.
    assert 2 * found.value - found.lo > 1.0


def test_an_exact_copy_of_the_reference_has_no_psnr(world: SceneWorld) -> None:
    data = cell(3)
    data.images[:] = data.reference_images
    metrics, per_prompt = reduce_cell(data, world)
    assert (metrics["psnr"].value, metrics["psnr"].lo, metrics["psnr"].hi) == (None, None, None)
    assert per_prompt["psnr"] == [None, None, None]
    assert metrics["ssim"].value == 1.0


def test_the_reference_itself_has_no_paired_figures(world: SceneWorld) -> None:
    metrics, per_prompt = reduce_cell(cell(4, reference_images=None), world)
    for name, spec in METRICS.items():
        if spec.paired:
            assert metrics[name].note == "n/a: no reference"
            assert name not in per_prompt
    assert metrics["prompt_accuracy"].value == 1.0


def test_below_256_images_no_distribution_is_compared(world: SceneWorld) -> None:
    metrics, _ = reduce_cell(cell(255), world)
    for name in DISTRIBUTIONS:
        assert (metrics[name].value, metrics[name].note) == (None, "n/a: N < 256")


def test_from_256_images_on_distributions_are_compared(world: SceneWorld) -> None:
    data = cell(256)
    reference = features_of(data.reference_images)
    metrics, _ = reduce_cell(replace(data, reference_features=reference), world)
    features = features_of(data.images)
    assert metrics["fid"].value == pytest.approx(fid(features, world.reference_features().numpy()), rel=1e-5)
    assert metrics["fid_ref"].value == pytest.approx(fid(features, reference), rel=1e-3)
    assert metrics["fid_ref"].value < metrics["fid"].value
    assert 0 < metrics["precision"].value <= 1
    assert 0 < metrics["recall"].value <= 1
    assert metrics["kid"].value is not None
    alone, _ = reduce_cell(replace(data, reference_images=None), world)
    assert alone["fid_ref"].note == "n/a: no reference"
    assert alone["fid"] == metrics["fid"]


def test_features_stored_with_the_images_are_the_ones_used(world: SceneWorld) -> None:
    data = cell(256)
    stored = features_of(data.images) + np.float32(1)
    shifted, _ = reduce_cell(replace(data, features=stored, reference_features=stored - 1), world)
    assert shifted["fid_ref"].value == pytest.approx(64.0, rel=1e-4)


def test_prompt_accuracy_is_wilsons_interval_over_the_judged(world: SceneWorld) -> None:
    data = cell(10)
    levels = features_of(data.images)[:, 0]
    threshold = float(np.sort(levels)[4])
    prompts = [replace(p, facts={"level": threshold}) for p in data.prompts]
    metrics, per_prompt = reduce_cell(replace(data, prompts=prompts), world)
    assert per_prompt["prompt_accuracy"] == [float(level >= threshold) for level in levels]
    found = metrics["prompt_accuracy"]
    # Wilson's interval for 6 of 10, from the formula.
    z, n, p = 1.959963984540054, 10, 0.6
    centre, half = (
        (p + z * z / 20) / (1 + z * z / n),
        z * np.sqrt(p * 0.4 / n + z * z / 400) / (1 + z * z / n),
    )
    assert (found.value, found.lo, found.hi) == pytest.approx((0.6, centre - half, centre + half), rel=1e-7)


def test_two_runs_are_byte_identical_whatever_the_number_of_threads(world: SceneWorld) -> None:
    texts = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        data = cell(256)
        metrics, per_prompt = reduce_cell(
            replace(data, reference_features=features_of(data.reference_images)), world
        )
        texts.append(json.dumps([{k: asdict(m) for k, m in metrics.items()}, per_prompt]))
    torch.set_num_threads(before)
    assert texts[0] == texts[1]


def test_missing_weights_are_named_with_where_to_get_them(world: SceneWorld) -> None:
    metrics, _ = reduce_cell(cell(2), world)
    assert metrics["lpips"].note == (
        "n/a: missing weights: https://download.pytorch.org/models/alexnet-owt-7be5be79.pth; "
        "`harness fetch --weights lpips-alex` gets it, or give --data-path lpips-alex=FILE"
    )
    assert "vgg16-397923af.pth" in metrics["lpips_vgg"].note
    assert "ImageReward.pt, med_config.json, vocab.txt" in metrics["image_reward"].note
    assert "model.safetensors or pytorch_model.bin" in metrics["clip_score"].note


def test_lpips_records_the_hash_of_its_backbone(world: SceneWorld, tmp_path: Path) -> None:
    import hashlib

    from harness.compat import ensure_torchvision

    ensure_torchvision()
    import torchvision

    file = tmp_path / "alexnet.pth"
    torch.manual_seed(0)
    torch.save(torchvision.models.alexnet(weights=None).features.state_dict(prefix="features."), file)
    metrics, per_prompt = reduce_cell(cell(3, data_paths={"lpips-alex": file}), world)
    assert metrics["lpips"].note == (
        f"alexnet-owt-7be5be79.pth sha256 {hashlib.sha256(file.read_bytes()).hexdigest()} "
        "(not the published file)"
    )
    assert metrics["lpips"].value == pytest.approx(np.mean(per_prompt["lpips"]), rel=1e-5)
    assert metrics["lpips"].value > 0
    with pytest.raises(UserError, match="not a file of weights"):
        reduce_cell(cell(3, data_paths={"lpips-alex": Path(__file__)}), world)


def test_an_absent_package_is_a_note(
    world: SceneWorld, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def absent(found: object, device: str) -> None:
        raise ModuleNotFoundError("No module named 'ImageReward'")

    monkeypatch.setattr("harness.figures.texts.load_image_reward", absent)
    for name in ("ImageReward.pt", "med_config.json", "vocab.txt"):
        (tmp_path / name).touch()
    metrics, _ = reduce_cell(cell(2, data_paths={"image-reward": tmp_path}), world)
    assert metrics["image_reward"].note.startswith("n/a: image-reward is not installed")


def test_other_prompt_sets_and_sizes_are_not_read_by_the_recogniser(world: SceneWorld) -> None:
    metrics, per_prompt = reduce_cell(cell(2, dataset="parti"), world)
    for name in ("lpips_scene", "prompt_accuracy"):
        assert metrics[name].note == "n/a: dataset is not scenes"
    assert metrics["fid"].note == "n/a: N < 256"
    assert set(per_prompt) == {"psnr", "ssim"}
    data = cell(2)
    large = replace(data, images=data.images[:, :32], reference_images=data.reference_images[:, :32])
    assert reduce_cell(large, world)[0]["prompt_accuracy"].note == "n/a: images are not 64x64"


def test_rows_that_do_not_match_the_prompts_are_refused() -> None:
    data = cell(4)
    with pytest.raises(ValueError, match="one row for each of the 4 prompts"):
        replace(data, features=np.zeros((3, 64), np.float32))
    with pytest.raises(ValueError, match="no figures"):
        CellData(data.images[:0], None, [])
