from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pipelines
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from harness.errors import UserError
from harness.generate import generate_block
from harness.models import load, locate, registry, roles

EMBEDDED = ("tiny-unet", "tiny-dit")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: pipelines.save_tiny(name, root / name) for name in EMBEDDED}


@pytest.fixture
def folder(saved: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved["tiny-unet"], tmp_path / "model"))


@pytest.mark.parametrize("name", ["tiny-unet", "tiny-dit"])
def test_a_folder_loads_with_exactly_its_weights(saved: dict[str, Path], name: str) -> None:
    card = pipelines.tiny_card(name)
    pipeline = load.load_pipeline(card, saved[name], "cpu", torch.float32)
    assert type(pipeline).__name__ == card.pipeline
    denoiser = getattr(pipeline, card.denoiser)
    stored = load_file(saved[name] / card.denoiser / "diffusion_pytorch_model.safetensors")
    held = denoiser.state_dict()
    assert set(stored) <= set(held)
    assert all(torch.equal(held[key], stored[key]) for key in stored)
    assert not denoiser.training
    assert not pipeline.text_encoder.training
    assert not any(parameter.requires_grad for parameter in denoiser.parameters())


@pytest.mark.parametrize("name", ["tiny-unet", "tiny-dit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_network_has_the_dtype_asked_for_whatever_the_files_hold(
    saved: dict[str, Path], tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    folder = Path(shutil.copytree(saved[name], tmp_path / "half"))
    for file in folder.rglob("*.safetensors"):
        save_file({k: v.half().contiguous() for k, v in load_file(file).items()}, file, {"format": "pt"})
    card = pipelines.tiny_card(name)
    pipeline = load.load_pipeline(card, folder, "cpu", dtype)
    for network in (getattr(pipeline, card.denoiser), pipeline.vae, pipeline.text_encoder):
        assert {parameter.dtype for parameter in network.parameters()} == {dtype}


def test_locate_prefers_the_given_folder_and_refuses_what_is_no_model(folder: Path, tmp_path: Path) -> None:
    card = registry.get("tiny-unet")
    assert locate.locate(card, {"tiny-unet": folder}) == folder
    with pytest.raises(UserError, match="no diffusers folder"):
        locate.locate(card, {"tiny-unet": tmp_path})
    published = replace(card, name="big", embedded=False)
    assert locate.locate(published, {"big": folder}) == folder
    with pytest.raises(UserError, match="--model-path big=DIR"):
        locate.locate(published, {"tiny-unet": folder})


def test_a_shared_vae_lies_beside_the_embedded_models(
    saved: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = saved["tiny-unet"]
    shutil.copytree(whole, tmp_path / "tiny-unet")
    shutil.move(tmp_path / "tiny-unet" / "vae", tmp_path / "vae")
    for module in (load, locate):
        monkeypatch.setattr(module, "EMBEDDED", tmp_path)
    card = registry.get("tiny-unet")
    path = locate.locate(card, {})
    assert path == tmp_path / "tiny-unet"
    assert load.weights_digest(path) == load.weights_digest(whole)
    pipeline = load.load_pipeline(card, path, "cpu", torch.float32)
    stored = load_file(whole / "vae" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(pipeline.vae.state_dict()["decoder.conv_in.weight"], stored["decoder.conv_in.weight"])


def test_the_digest_sees_every_weight_and_config_and_nothing_else(folder: Path) -> None:
    before = load.weights_digest(folder)
    assert len(before) == 64
    (folder / "README.md").write_text("a note")
    assert load.weights_digest(folder) == before
    seen = {before}
    for name in ("vae/config.json", "unet/diffusion_pytorch_model.safetensors", "model_index.json"):
        content = bytearray((folder / name).read_bytes())
        content[-2] ^= 1
        (folder / name).write_bytes(content)
        seen.add(load.weights_digest(folder))
    (folder / "unet" / "config.json").rename(folder / "unet" / "other.json")
    seen.add(load.weights_digest(folder))
    assert len(seen) == 5


def test_the_digest_of_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no model"):
        load.weights_digest(tmp_path)


def edit_index(folder: Path, **entries: object) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def drop_a_weight(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["conv_in.weight"]
    save_file(tensors, path, {"format": "pt"})


def pickle_instead(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()


def truncate(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def empty_the_vocabulary(folder: Path) -> None:
    path = folder / "tokenizer" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"] = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model_index.json").write_text("{"), r"model_index\.json cannot be read"),
        (lambda f: (f / "model_index.json").write_text("[]"), "holds a None"),
        (lambda f: edit_index(f, _class_name="FluxPipeline"), "is a StableDiff.*, but .*'FluxPipeline'"),
        (lambda f: edit_index(f, unet=["my_code", "Net"]), "'unet' is of neither"),
        (lambda f: edit_index(f, **{"../x": ["diffusers", "AutoencoderKL"]}), "'../x' is of neither"),
        (lambda f: edit_index(f, unet=["diffusers", "NoSuchNet"]), "no 'NoSuchNet'"),
        (lambda f: edit_index(f, unet=[None, None]), "names no 'unet'"),
        (lambda f: shutil.rmtree(f / "text_encoder"), "the folder of 'text_encoder' is missing"),
        (lambda f: shutil.rmtree(f / "vae"), "the folder of 'vae' is missing"),
        (lambda f: (f / "unet" / "config.json").unlink(), "'unet' cannot be loaded"),
        (lambda f: (f / "unet" / "config.json").write_text("{"), "'unet' cannot be loaded"),
        (lambda f: (f / "scheduler" / "scheduler_config.json").unlink(), "'scheduler' cannot be loaded"),
        (drop_a_weight, r"1 weights of 'unet' are missing, e.g. conv_in.weight"),
        (pickle_instead, "no safetensors weights for 'unet'"),
        (truncate, "'unet' cannot be loaded"),
        (lambda f: (f / "tokenizer" / "tokenizer.json").unlink(), "no vocabulary for 'tokenizer'"),
        (empty_the_vocabulary, "the vocabulary of 'tokenizer' is empty"),
    ],
)  # fmt: skip
def test_a_damaged_folder_is_refused_in_one_line(
    folder: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        load.load_pipeline(pipelines.tiny_card("tiny-unet"), folder, "cpu", torch.float32)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_embedded_models_load_from_the_package_and_sample(name: str) -> None:
    card = registry.get(name)
    pipeline = load.load_pipeline(card, locate.locate(card, {}), "cpu", torch.float32)
    denoiser = getattr(pipeline, card.denoiser)
    weights = [m.weight.numel() for m in denoiser.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    handed = [denoiser.get_submodule(t.name).weight.numel() for t in roles.targets(card, denoiser, 4, 8)]
    assert sum(handed) > 0.9 * sum(weights)
    images = generate_block(pipeline, card, pipelines.prompts(1), 0)
    assert images.shape == (1, card.sampling.height, card.sampling.width, 3)


def test_the_embedded_weights_stay_within_32_megabytes() -> None:
    files = [file for file in load.EMBEDDED.rglob("*") if file.is_file()]
    assert 0 < sum(file.stat().st_size for file in files) <= 32 * 2**20
