"""What `harness fetch` records on first use, what it refuses later, and what a run takes from its folder."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import reduced
import torch

from harness import hub
from harness.cli import call
from harness.datasets import sources
from harness.datasets.sources import Download
from harness.errors import UserError
from harness.fetched import MANIFEST, check_model, fetched_files, fetched_model, manifest_of
from harness.fetching import fetch, fetch_items, item_of
from harness.metrics.sources import WEIGHTS, find
from harness.metrics.weights import check_published

quiet: Callable[[str], None] = lambda _line: None  # noqa: E731


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, bytes]:
    """Addresses and what they give; the data folder is tmp_path/data, the caches are empty."""
    content: dict[str, bytes] = {}

    def download(url: str, path: Path) -> None:
        if url not in content:
            raise UserError(f"{url} cannot be had: 404 Not Found")
        path.write_bytes(content[url])

    monkeypatch.setattr("harness.fetching._download", download)
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path / "data"))
    for name in ("TORCH_HOME", "HF_HUB_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    return content


class Hub:
    """A hub of one repository, in the place of the client's two calls."""

    def __init__(self, folder: Path, commit: str = "c" * 40) -> None:
        self.folder, self.commit, self.asked = folder, commit, []
        self.lies: dict[str, bytes] = {}

    def install(self, monkeypatch: pytest.MonkeyPatch) -> Hub:
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: self)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", self.download)
        return self

    def model_info(self, repo: str, revision: str, files_metadata: bool) -> SimpleNamespace:
        self.asked.append((repo, revision))
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        lfs = {path: path.suffix == ".safetensors" for path in files}
        siblings = [
            SimpleNamespace(
                rfilename=path.relative_to(self.folder).as_posix(),
                lfs=SimpleNamespace(sha256=sha256(path.read_bytes())) if lfs[path] else None,
            )
            for path in files
        ]
        commit = revision if len(revision) == 40 else self.commit
        return SimpleNamespace(siblings=siblings, sha=commit, card_data=SimpleNamespace(license="a licence"))

    def download(self, repo: str, name: str, revision: str, local_dir: Path) -> str:
        path = local_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.lies.get(name, (self.folder / name).read_bytes()))
        return str(path)


def test_a_file_must_stay_what_it_was_when_it_was_first_fetched(served, tmp_path) -> None:
    download = Download("mjhq", "https://x/meta", "meta_data.json", "a licence")
    served[download.url] = b"first"
    folder = tmp_path / "data"
    fetch([download], folder, quiet)
    served[download.url] = b"changed"
    fetch([download], folder, quiet)  # nothing is downloaded while the file is sound
    (folder / "meta_data.json").unlink()
    with pytest.raises(UserError, match=f"another file than was fetched first: sha256 {sha256(b'changed')}"):
        fetch([download], folder, quiet)
    assert [path.name for path in folder.iterdir()] == [MANIFEST]
    fetch_items([item_of(download)], folder, quiet, renew=True)
    assert manifest_of(folder).files["meta_data.json"]["sha256"] == sha256(b"changed")


def test_weights_of_torchs_servers_must_begin_as_their_name_says(served, tmp_path) -> None:
    weights = WEIGHTS["lpips-alex"]
    served[weights.url + weights.file] = b"not AlexNet"
    with pytest.raises(UserError, match="holds another file than expected"):
        hub.fetch_weights(["lpips-alex"], tmp_path / "data", quiet)
    assert find("lpips-alex", {}) is None


def small_clip(folder: Path) -> Path:
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "vocab.json", "merges.txt", "flax_model.msgpack"):
        (folder / name).write_bytes(name.encode())
    return folder


def test_weights_of_the_hub_are_found_by_a_run_and_checked(served, monkeypatch, tmp_path) -> None:
    remote = Hub(small_clip(tmp_path / "clip")).install(monkeypatch)
    folder = tmp_path / "data"
    hub.fetch_weights(["clip"], folder, quiet)
    entries = manifest_of(folder).files
    assert set(entries) == {
        f"weights/clip/{n}" for n in ("config.json", "model.safetensors", "vocab.json", "merges.txt")
    }
    entry = entries["weights/clip/model.safetensors"]
    assert entry["sha256"] == sha256(b"model.safetensors")
    assert (entry["bytes"], entry["licence"], entry["revision"]) == (17, "MIT", "c" * 40)
    found = find("clip", {})
    assert found is not None
    assert not found.given
    assert found.path("vocab.json") == folder / "weights" / "clip" / "vocab.json"
    assert find("clip", {}, hub=False) is None  # the embedded world reads nothing of the hub's
    assert sha256(b"model.safetensors") in check_published(found)
    asked = len(remote.asked)
    hub.fetch_weights(["clip"], folder, quiet)
    assert len(remote.asked) == asked
    for name in ("vocab.json", "model.safetensors"):
        kept = (folder / "weights" / "clip" / name).read_bytes()
        (folder / "weights" / "clip" / name).write_bytes(b"changed")
        with pytest.raises(UserError, match=f"{name} is not what was fetched"):
            check_published(found)
        (folder / "weights" / "clip" / name).write_bytes(kept)
    # A branch that moved on does not change what was begun at a commit.
    (folder / "weights" / "clip" / "vocab.json").unlink()
    remote.commit = "d" * 40
    hub.fetch_weights(["clip"], folder, quiet)
    assert remote.asked[-1][1] == "c" * 40


def test_a_file_that_the_hubs_digest_does_not_fit_is_refused(served, monkeypatch, tmp_path) -> None:
    remote = Hub(small_clip(tmp_path / "clip")).install(monkeypatch)
    remote.lies["model.safetensors"] = b"something else"
    with pytest.raises(UserError, match="holds another file than expected"):
        hub.fetch_weights(["clip"], tmp_path / "data", quiet)
    assert find("clip", {}) is None


def test_a_manifest_that_leads_out_of_its_folder_is_refused(tmp_path) -> None:
    folder = tmp_path / "data"
    (folder / "weights").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (folder / "weights" / "clip").symlink_to(tmp_path / "elsewhere")
    for path in ("weights/clip/config.json", "weights/../../x", "/etc/passwd", "weights//x"):
        hub.write_manifest(folder, hub.Manifest({path: {"dataset": "clip", "sha256": ""}}, {}))
        with pytest.raises(UserError, match="is damaged"):
            fetched_files("clip", folder)


@pytest.fixture
def model(served, monkeypatch, tmp_path) -> Path:
    """A reduced Stable Diffusion on a hub, fetched."""
    torch.set_num_threads(1)
    source = reduced.save_reduced("sd-1.4", tmp_path / "source")
    (source / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle that nobody needs")
    (source / "README.md").write_text("no part of the model")
    Hub(source).install(monkeypatch)
    assert call(["fetch", "--models", "sd-1.4"]) == 0
    return tmp_path / "data" / "models" / "sd-1.4"


def test_a_fetched_model_runs_offline_until_it_is_changed(model, monkeypatch, tmp_path, capsys) -> None:
    folder = tmp_path / "data"
    assert fetched_model("sd-1.4", folder) == model
    assert not list(model.rglob("*.bin"))
    assert not (model / "README.md").exists()
    assert not (folder / hub.STAGING).exists()
    names = {path for path in manifest_of(folder).files if path.startswith("models/sd-1.4/")}
    assert names == {
        f"models/sd-1.4/{p.relative_to(model).as_posix()}" for p in model.rglob("*") if p.is_file()
    }
    monkeypatch.chdir(tmp_path)
    command = ["run", "--models", "sd-1.4", "--methods", "ptq", "--bits", "4", "--offline", "--dry-run"]
    assert call(command) == 0
    assert "sd-1.4" in capsys.readouterr().out
    config = model / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"sample_size": 9}))
    assert call(command) == 2
    assert "is not what was fetched: run `harness fetch` again" in capsys.readouterr().err


def test_a_model_fetched_in_part_is_missing_and_goes_on(served, monkeypatch, tmp_path, capsys) -> None:
    source = reduced.save_reduced("sd-1.4", tmp_path / "source")
    remote = Hub(source).install(monkeypatch)
    remote.lies["vae/diffusion_pytorch_model.safetensors"] = b"cut"
    assert call(["fetch", "--models", "sd-1.4"]) == 2
    folder = tmp_path / "data"
    assert fetched_model("sd-1.4", folder) is None
    assert call(["run", "--models", "sd-1.4", "--methods", "ptq", "--bits", "4", "--offline"]) == 2
    assert "`harness fetch --models sd-1.4` gets what can be had" in capsys.readouterr().err
    remote.lies.clear()
    assert call(["fetch", "--models", "sd-1.4"]) == 0
    assert "model_index.json: there already" in capsys.readouterr().out
    assert fetched_model("sd-1.4", folder) is not None


def test_a_model_elsewhere_is_not_the_manifests_business(served, tmp_path) -> None:
    check_model("sd-1.4", tmp_path, "any digest")


def test_what_cannot_be_fetched_is_one_line(served, monkeypatch, tmp_path, capsys) -> None:
    def gated(**_kwargs: object) -> None:
        raise RuntimeError("401 Client Error.\nYou must be logged in")

    monkeypatch.setattr(
        huggingface_hub, "HfApi", lambda: SimpleNamespace(model_info=lambda *_a, **k: gated())
    )
    lines = {
        ("--models", "flux.1-dev"): "FLUX.1-dev@3de623fc cannot be listed: 401 Client Error.",
        ("--models", "flux.1dev"): "did you mean flux.1-dev",
        ("--models", "tiny-dit"): "ships with the package",
        ("--models", "ldm-4-imagenet"): "`harness convert` makes it",
        ("--weights", "clp"): "did you mean clip",
        ("--protocol", "scenes-default"): "needs no download",
        ("--weights", "lpips-vgg"): "cannot be had: 404",
        ("--weights", "lpips-vgg", "--out", "/dev/null/x"): "cannot write to /dev/null/x: Not a directory",
    }
    for arguments, line in lines.items():
        assert call(["fetch", *arguments]) == 2
        err = capsys.readouterr().err
        assert len(err.splitlines()) == 1
        assert line in err


def test_a_protocol_brings_its_files_and_the_weights(served, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(
        sources, "DOWNLOADS", {n: Download(n, f"https://x/{n}", n, "l") for n in ("coco-2014", "qdiff")}
    )
    served |= {"https://x/coco-2014": b"1", "https://x/qdiff": b"2"}
    asked: list[list[str]] = []
    monkeypatch.setattr(hub, "fetch_weights", lambda keys, *_rest: asked.append(keys))
    assert call(["fetch", "--protocol", "mpqdm-sd14-coco10k"]) == 0
    assert asked == [list(WEIGHTS)]
    assert "coco-2014" in manifest_of(tmp_path / "data").files
    shutil.rmtree(tmp_path / "data")
