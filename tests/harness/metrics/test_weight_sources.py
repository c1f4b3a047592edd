import hashlib
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.metrics.readiness import readiness
from harness.metrics.sources import WEIGHTS, cached_weights, find, missing_note
from harness.metrics.weights import check_published


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_a_cached_file_must_be_what_its_name_says(caches: Path) -> None:
    file = caches / WEIGHTS["inception"].file
    file.write_bytes(b"something else")
    with pytest.raises(UserError, match=r"6726825d\.pth in torch's cache is damaged: its sha256 is"):
        check_published(find("inception", {}))
    rows = {row["name"]: row for row in readiness({})}
    assert rows["sfid"]["state"] == "damaged"
    assert rows["psnr"]["state"] == "ready"


def test_a_given_file_may_be_another_and_its_hash_says_so(tmp_path: Path) -> None:
    file = tmp_path / "mine.pth"
    file.write_bytes(b"mine")
    digest = hashlib.sha256(b"mine").hexdigest()
    note = check_published(find("inception", {"inception": file}))
    assert note == f"{WEIGHTS['inception'].file} sha256 {digest} (not the published file)"


def test_repositories_are_complete_or_refused(tmp_path: Path) -> None:
    for name in ("config.json", "vocab.json"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"holds no model\.safetensors or pytorch_model\.bin, merges\.txt"):
        find("clip", {"clip": tmp_path})
    (tmp_path / "merges.txt").touch()
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    found = find("clip", {"clip": tmp_path})
    assert found.path("model.safetensors", "pytorch_model.bin") == tmp_path / "pytorch_model.bin"
    assert check_published(found).startswith("pytorch_model.bin sha256 2d711642b726b044")


def test_missing_weights_name_the_file_and_the_way_to_it() -> None:
    for key, weights in WEIGHTS.items():
        note = missing_note(key)
        assert note.startswith("n/a: missing weights: ")
        assert f"--data-path {key}=" in note
        assert all(name.split("|")[0] in note for name in weights.files)
        assert weights.file in note
        assert weights.licence


def test_a_new_file_in_a_cache_changes_what_is_judged_by(caches: Path) -> None:
    before = cached_weights()
    (caches / WEIGHTS["lpips-vgg"].file).write_bytes(b"x")
    assert set(cached_weights()) - set(before) == {"lpips-vgg"}
