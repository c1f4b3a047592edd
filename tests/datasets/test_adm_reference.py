"""ADM's reference batches: what is read, and what is refused."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.datasets.adm import adm_images, read_adm
from harness.errors import UserError

D, S = 5, 3
RNG = np.random.default_rng(0)
GOOD: dict[str, Any] = {
    "arr_0": RNG.integers(0, 256, (7, 4, 4, 3), dtype=np.uint8),
    "mu": RNG.normal(size=D),
    "sigma": RNG.normal(size=(D, D)),
    "mu_s": RNG.normal(size=S).astype(np.float32),
    "sigma_s": RNG.normal(size=(S, S)),
}


class Executes:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


def batch(folder: Path, **changed: Any) -> Path:
    path = folder / "reference.npz"
    parts = {name: value for name, value in (GOOD | changed).items() if value is not None}
    np.savez(path, **parts)
    return path


def test_statistics_and_images(tmp_path: Path) -> None:
    path = batch(tmp_path)
    reference = read_adm(path)
    for found, names in ((reference.pool, ("mu", "sigma")), (reference.spatial, ("mu_s", "sigma_s"))):
        assert found is not None
        for values, name in zip(found, names, strict=True):
            assert values.dtype == np.float64
            np.testing.assert_array_equal(values, GOOD[name])
    assert reference.images == (7, 4, 4, 3)
    batches = list(adm_images(path, 3))
    assert [len(images) for images in batches] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate(batches), GOOD["arr_0"])


def test_a_compressed_batch_without_images(tmp_path: Path) -> None:
    path = tmp_path / "small.npz"
    np.savez_compressed(path, **{name: value for name, value in GOOD.items() if name != "arr_0"})
    assert read_adm(path).images is None
    np.savez_compressed(path, arr_0=GOOD["arr_0"], mu=GOOD["mu"], sigma=GOOD["sigma"])
    assert read_adm(path).spatial is None
    np.savez_compressed(path, mu=GOOD["mu"], sigma=GOOD["sigma"])
    with pytest.raises(UserError, match="holds no images"):
        next(adm_images(path, 1))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mu": None}, "it holds sigma alone of mu and sigma"),
        (dict.fromkeys(GOOD), "neither images"),
        ({"mu": np.array([Executes()] * D)}, "mu holds pickled objects"),
        ({"arr_0": np.array([Executes()])}, "arr_0 holds pickled objects"),
        ({"sigma": np.zeros((D, D + 1))}, "sigma has shape"),
        ({"mu_s": np.zeros(S, np.int64)}, "mu_s is int64"),
        ({"sigma_s": np.full((S, S), np.nan)}, "sigma_s holds numbers that are not finite"),
        ({"mu": np.zeros(5000)}, "mu is float64"),
        ({"arr_0": np.zeros((2, 4, 4), np.uint8)}, "not uint8 images"),
    ],
)
def test_other_content_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], message: str
) -> None:
    path = batch(tmp_path, **changed)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        read_adm(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["reference.npz"], "nothing was executed"


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = batch(tmp_path)
    whole = path.read_bytes()
    middle = whole.index(GOOD["sigma"].tobytes())
    damages = {
        "truncated": whole[: len(whole) // 2],
        "flipped": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "pickle": b"\x80\x04cos\nsystem\n",
        "empty": b"",
    }
    for content in damages.values():
        path.write_bytes(content)
        with pytest.raises(UserError, match="cannot be read as ADM's reference batch"):
            read_adm(path)
    with pytest.raises(UserError, match="does not exist"):
        read_adm(tmp_path / "nothing.npz")


def test_an_array_shorter_than_it_says_is_refused(tmp_path: Path) -> None:
    path = batch(tmp_path)
    file = io.BytesIO()
    np.save(file, GOOD["arr_0"])
    with zipfile.ZipFile(batch(tmp_path, arr_0=None), "a") as archive:
        archive.writestr("arr_0.npy", file.getvalue()[:-10])
    with pytest.raises(UserError, match="arr_0 is cut off"):
        list(adm_images(path, 4))
