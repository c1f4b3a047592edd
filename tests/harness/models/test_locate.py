from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.models import locate
from harness.models.registry import get

SDXL = get("sdxl")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def fill(folder: Path, components: tuple[str, ...]) -> Path:
    """A folder with every file of a model, empty but for what names other files."""
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    for name in components:
        (folder / name).mkdir()
        if name == "scheduler":
            files = ["scheduler_config.json"]
        elif name.startswith("tokenizer"):
            files = ["vocab.json", "merges.txt"]
        else:
            stem = "model" if name.startswith("text") else "diffusion_pytorch_model"
            files = ["config.json", f"{stem}.safetensors"]
        for file in files:
            (folder / name / file).write_text("")
    return folder


def shard(folder: Path, names: list[str]) -> None:
    """Cut the weights of a network into files of these names."""
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    index = {"weight_map": {f"layer{i}": name for i, name in enumerate(names)}}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    for name in names:
        (folder / name).write_text("")


def test_the_hubs_cache_is_where_its_client_keeps_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub = SDXL.hub
    assert hub is not None
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    tail = f"hub/models--stabilityai--stable-diffusion-xl-base-1.0/snapshots/{hub.revision}"
    assert locate.snapshot(hub) == Path.home() / ".cache/huggingface" / tail
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert locate.snapshot(hub) == tmp_path / tail


def test_a_model_in_the_cache_is_found_and_one_that_is_not_is_named(cache: Path) -> None:
    assert SDXL.hub is not None
    with pytest.raises(UserError, match=r"'sdxl' is not in the hub's cache: .*give --model-path sdxl=DIR"):
        locate.locate(SDXL, {})
    folder = fill(locate.snapshot(SDXL.hub), SDXL.components)
    assert locate.locate(SDXL, {}) == folder
    assert locate.missing_files(SDXL, folder) == []
    assert locate.fetch(SDXL) == folder  # nothing is missing, so nothing is asked of the hub


def test_exactly_what_is_missing_is_listed(tmp_path: Path) -> None:
    folder = fill(tmp_path / "sdxl", SDXL.components)
    shard(folder / "unet", ["a.safetensors", "b.safetensors"])
    for name in (
        "unet/b.safetensors",
        "vae/config.json",
        "text_encoder_2/model.safetensors",
        "tokenizer/vocab.json",
    ):
        (folder / name).unlink()
    (folder / "scheduler" / "scheduler_config.json").unlink()
    assert locate.missing_files(SDXL, folder) == [
        "scheduler/",
        "text_encoder_2/model.safetensors",
        "tokenizer/ (tokenizer.json or vocab.json or vocab.txt or spiece.model or tokenizer.model)",
        "unet/b.safetensors",
        "vae/config.json",
    ]  # fmt: skip


def test_an_index_cannot_lead_out_of_its_folder(tmp_path: Path) -> None:
    folder = fill(tmp_path / "sdxl", SDXL.components)
    (folder / "x.safetensors").write_text("")
    index = {"weight_map": {"layer": "../x.safetensors"}}
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="names a file outside its folder"):
        locate.missing_files(SDXL, folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text("[]")
    with pytest.raises(UserError, match="is no index of shards"):
        locate.missing_files(SDXL, folder)


def test_a_variant_is_preferred_where_it_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "transformer"
    folder.mkdir()
    assert locate.weight_files(folder, "bf16") == ([], None)
    plain, half = (folder / f"diffusion_pytorch_model{dot}.safetensors" for dot in ("", ".bf16"))
    plain.write_text("")
    assert locate.weight_files(folder, "bf16") == ([plain], None)
    half.write_text("")
    assert locate.weight_files(folder, "bf16") == ([half], "bf16")
    assert locate.weight_files(folder, None) == ([plain], None)


def test_one_set_of_weights_is_downloaded() -> None:
    listed = [
        "model_index.json", "README.md", "sd_xl_base_1.0.safetensors", "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/model.onnx", "vae/config.json", "vae/diffusion_pytorch_model.bin",
        "vae/diffusion_pytorch_model.safetensors", "vae_1_0/diffusion_pytorch_model.safetensors",
        "tokenizer/merges.txt", "tokenizer/vocab.json", "scheduler/scheduler_config.json",
    ]  # fmt: skip
    assert locate.download_patterns(SDXL, listed) == [
        "model_index.json", "scheduler/scheduler_config.json", "tokenizer/merges.txt", "tokenizer/vocab.json",
        "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]  # fmt: skip
    sana = ["model_index.json", "transformer/diffusion_pytorch_model.bf16.safetensors"]
    sana += [f"text_encoder/model.bf16-0000{i}-of-00002.safetensors" for i in (1, 2)]
    assert locate.download_patterns(get("sana-1.6b"), sana) == sorted(sana)


def test_offline_all_that_is_missing_is_listed_and_nothing_heavy_is_imported(
    cache: Path, tmp_path: Path
) -> None:
    given = fill(tmp_path / "pixart", get("pixart-sigma").components)
    (given / "vae" / "config.json").unlink()
    code = (
        "import sys\n"
        "from harness.cli import call\n"
        f"code = call(['run', '--models', 'flux.1-dev,pixart-sigma,tiny-dit', '--offline',"
        f" '--model-path', 'pixart-sigma={given}'])\n"
        "import os\n"
        "heavy = [m for m in ('torch', 'diffusers', 'transformers', 'huggingface_hub') if m in sys.modules]\n"
        "print(code, heavy, os.environ['HF_HUB_OFFLINE'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "2 [] 1\n"
    (line,) = done.stderr.splitlines()
    parts = "scheduler/, text_encoder/, text_encoder_2/, tokenizer/, tokenizer_2/, transformer/, vae/"
    at = "black-forest-labs/FLUX.1-dev@3de623fc"
    assert f"flux.1-dev: model_index.json, {parts} of {at}; pixart-sigma: vae/config.json in {given}" in line
    assert "`harness fetch --models flux.1-dev` gets what can be had" in line
