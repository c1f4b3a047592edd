import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.errors import UserError
from harness.metrics.features import FeatureCache
from harness.metrics.images import Array
from harness.metrics.real_images import folder_images, given_images
from harness.metrics.sources import WEIGHTS, Found


class Means:
    version = 1
    built = 0

    def __init__(self, found: Found, device: str) -> None:
        type(self).built += 1

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        return {"mean": images.mean(axis=(1, 2)).astype(np.float32)}


@pytest.fixture
def weights(tmp_path: Path) -> Found:
    file = tmp_path / "weights.pth"
    file.write_bytes(b"1")
    return Found(WEIGHTS["inception"], {"weights.pth": file}, True)


def pictures(n: int = 20, side: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def test_features_are_formed_once_for_the_same_images_and_weights(tmp_path: Path, weights: Found) -> None:
    cache, images = FeatureCache(tmp_path / "kept"), pictures()
    before = Means.built
    first = cache.features(Means, 1, weights, Array(images))["mean"]
    np.testing.assert_allclose(first, images.mean(axis=(1, 2)), rtol=1e-6)
    again = cache.features(Means, 1, weights, Array(images.copy()))["mean"]
    assert Means.built == before + 1
    assert again.tobytes() == first.tobytes()
    cache.features(Means, 2, weights, Array(images))
    cache.features(Means, 1, weights, Array(images[::-1]))
    weights.path().write_bytes(b"2")
    cache.features(Means, 1, weights, Array(images))
    assert Means.built == before + 4


def test_damaged_features_are_formed_again(tmp_path: Path, weights: Found) -> None:
    cache, images = FeatureCache(tmp_path / "kept"), pictures()
    first = cache.features(Means, 1, weights, Array(images))["mean"]
    (file,) = (tmp_path / "kept").iterdir()
    whole = file.read_bytes()
    for damage in (b"", whole[:-3], whole[:50] + b"x" + whole[51:]):
        file.write_bytes(damage)
        np.testing.assert_array_equal(cache.features(Means, 1, weights, Array(images))["mean"], first)
        assert file.read_bytes() == whole


def test_without_a_folder_nothing_is_kept(weights: Found) -> None:
    before = Means.built
    for _ in range(2):
        FeatureCache(None).features(Means, 1, weights, Array(pictures(2)))
    assert Means.built == before + 2


def test_a_folder_of_pictures_of_several_sizes_and_modes(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    images = pictures(3)
    Image.fromarray(images[0]).save(tmp_path / "a.png")
    Image.fromarray(images[1][:4]).save(tmp_path / "b.PNG")
    Image.fromarray(images[2][..., 0]).save(tmp_path / "inner" / "c.png")
    (tmp_path / "notes.txt").write_text("no picture")
    batches = list(folder_images(tmp_path).runs(16))
    assert [batch.shape for batch in batches] == [(1, 8, 8, 3), (1, 4, 8, 3), (1, 8, 8, 3)]
    np.testing.assert_array_equal(batches[0][0], images[0])
    np.testing.assert_array_equal(batches[2][0], np.repeat(images[2][..., :1], 3, axis=2))


def test_pictures_that_cannot_be_believed_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "real"
    folder.mkdir()
    with pytest.raises(UserError, match="holds no images"):
        given_images(folder)
    (folder / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n0000")
    with pytest.raises(UserError, match=r"cut\.png is not an image") as caught:
        list(folder_images(folder).runs(16))
    assert "\n" not in str(caught.value)
    (folder / "cut.png").unlink()
    Image.fromarray(pictures(1)[0]).save(tmp_path / "secret.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(UserError, match=r"link\.png leads out of"):
        given_images(folder)


def test_adm_archives_of_images_and_moments(tmp_path: Path) -> None:
    file, images = tmp_path / "ref.npz", pictures(5)
    rows = np.random.default_rng(1).normal(size=(50, 6))
    np.savez(file, arr_0=images, mu=rows.mean(0), sigma=np.cov(rows, rowvar=False))
    real = given_images(file)
    (part,) = real.images.parts()
    np.testing.assert_array_equal(np.concatenate(list(part.batches())), images)
    moments = real.moments("pool")
    np.testing.assert_allclose(moments.factor.T @ moments.factor, np.cov(rows, rowvar=False), rtol=1e-9)
    assert real.moments("spatial") is None
    np.savez(file, mu=rows.mean(0), sigma=np.cov(rows, rowvar=False))
    assert given_images(file).images is None


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


def test_archives_are_never_unpickled(tmp_path: Path) -> None:
    file, trace = tmp_path / "ref.npz", tmp_path / "ran"
    np.savez(file, arr_0=np.array([Payload(trace)], dtype=object))
    with pytest.raises(UserError, match=r"ref\.npz cannot be read as ADM"):
        given_images(file)
    file.write_bytes(pickle.dumps(Payload(trace)))
    with pytest.raises(UserError, match=r"ref\.npz cannot be read as ADM"):
        given_images(file)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"other": np.zeros(3)}, "neither images"),
        ({"arr_0": np.zeros((2, 4, 4, 3))}, "not uint8 images"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, "sigma has shape"),
        ({"mu": np.full(2, np.nan), "sigma": np.eye(2)}, "not finite"),
    ],
)
def test_archives_of_something_else_are_refused(tmp_path: Path, arrays: dict, message: str) -> None:
    file = tmp_path / "ref.npz"
    np.savez(file, **arrays)
    with pytest.raises(UserError, match=message):
        given_images(file)
