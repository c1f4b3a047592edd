"""The shipped weights are the ones summed up in SHA256SUMS, all of them, and stay small."""

import hashlib
from importlib.resources import files
from pathlib import Path

import pytest

from harness.datasets.scenes.recogniser import assets

EMBEDDED = Path(str(files("harness.models"))) / "embedded"
PLACES = {"harness/models/embedded/": EMBEDDED, "datasets/scenes/assets/": assets()}
MAX_BYTES = 32_000_000


def listed() -> dict[Path, str]:
    """Installed file -> digest."""
    found = {}
    for line in (EMBEDDED / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
        digest, name = line.split("  ", 1)
        (prefix,) = [prefix for prefix in PLACES if name.startswith(prefix)]
        found[PLACES[prefix] / name.removeprefix(prefix)] = digest
    return found


@pytest.mark.parametrize(("path", "digest"), listed().items(), ids=lambda value: Path(str(value)).name[:40])
def test_each_shipped_file_is_the_one_listed(path: Path, digest: str) -> None:
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest


def test_every_shipped_file_is_listed_and_all_are_small_enough() -> None:
    shipped = {path for folder in PLACES.values() for path in folder.rglob("*") if path.is_file()}
    assert shipped - {EMBEDDED / "SHA256SUMS"} == set(listed())
    assert sum(path.stat().st_size for path in shipped) <= MAX_BYTES


def test_nothing_shipped_can_hold_code() -> None:
    shipped = {path for folder in PLACES.values() for path in folder.rglob("*") if path.is_file()}
    assert {path.suffix for path in shipped} <= {".safetensors", ".json", ""}
