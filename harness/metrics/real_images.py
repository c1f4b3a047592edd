"""The real images a prompt set is compared with: a folder of pictures, or an .npz as ADM publishes them."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from harness.canonical import digest_bytes, digest_file, digest_json
from harness.errors import UserError
from harness.metrics.extractors import BATCH
from harness.metrics.fid import Gaussian, gaussian_of

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_MOMENTS = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}
"""Names of ADM's stored moments by the feature of Inception-v3 they are of."""


class Images(Protocol):
    """A source of images that can be gone through more than once."""

    def digest(self) -> str:
        """Return a digest of the content."""
        ...

    def batches(self) -> Iterator[NDArray[np.uint8]]:
        """Yield uint8 [n, height, width, 3] of up to 16 images of one size."""
        ...


class Array:
    """Images in memory, uint8 [n, height, width, 3]."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        """Keep the array; nothing is copied."""
        self._images = images

    def digest(self) -> str:
        """Return the digest of shape and pixels."""
        pixels = digest_bytes(np.ascontiguousarray(self._images).tobytes())
        return digest_json([list(self._images.shape), pixels])

    def batches(self) -> Iterator[NDArray[np.uint8]]:
        """Yield runs of up to 16 images."""
        for start in range(0, len(self._images), BATCH):
            yield self._images[start : start + BATCH]


class Folder:
    """Every picture in a folder and its subfolders, by path."""

    def __init__(self, path: Path) -> None:
        """List the pictures.

        Raises:
            UserError: there are none, or one of them is a link that leads out of the folder.
        """
        root = path.resolve()
        self._root = root
        self._files = sorted(
            file for file in root.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()
        )
        if not self._files:
            raise UserError(f"{path} holds no images ({', '.join(SUFFIXES)})")
        outside = next((file for file in self._files if not file.resolve().is_relative_to(root)), None)
        if outside is not None:
            raise UserError(f"{outside.relative_to(root)} leads out of {path}")

    def digest(self) -> str:
        """Return the digest of names and bytes."""
        return digest_json([[str(file.relative_to(self._root)), digest_file(file)] for file in self._files])

    def batches(self) -> Iterator[NDArray[np.uint8]]:
        """Yield runs of up to 16 images of one size.

        Raises:
            UserError: a picture cannot be decoded.
        """
        held: list[NDArray[np.uint8]] = []
        for file in self._files:
            image = _read(file)
            if held and (held[0].shape != image.shape or len(held) == BATCH):
                yield np.stack(held)
                held = []
            held.append(image)
        yield np.stack(held)


def _read(file: Path) -> NDArray[np.uint8]:
    from PIL import Image

    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB"), dtype=np.uint8)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{file.name} is not an image that can be read: {error}") from error


class RealImages:
    """What `--data-path reference-images=PATH` names.

    Attributes:
        images: the pictures, or None when the file holds moments alone.
    """

    def __init__(self, path: Path) -> None:
        """Open a folder or an .npz file; arrays are read without unpickling.

        Raises:
            UserError: it is neither, or it is damaged.
        """
        self._moments: dict[str, Gaussian] = {}
        self.images: Images | None = None
        if path.is_dir():
            self.images = Folder(path)
            return
        arrays = _read_npz(path)
        pictures = arrays.get("arr_0")
        if pictures is not None:
            if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3:
                raise UserError(f"{path.name}: arr_0 is {pictures.dtype} {pictures.shape}, not images")
            self.images = Array(np.asarray(pictures, dtype=np.uint8))
        for feature, (mean, covariance) in _MOMENTS.items():
            if mean in arrays and covariance in arrays:
                self._moments[feature] = _gaussian(path, arrays[mean], arrays[covariance])
        if self.images is None and not self._moments:
            raise UserError(f"{path.name} holds neither images (arr_0) nor moments (mu, sigma)")

    def moments(self, feature: str) -> Gaussian | None:
        """Return the stored moments of `pool` or `spatial`, or None; they are over more images than arr_0."""
        return self._moments.get(feature)


def _read_npz(path: Path) -> dict[str, NDArray[np.generic]]:
    names = ("arr_0", *(name for pair in _MOMENTS.values() for name in pair))
    try:
        with np.load(path, allow_pickle=False) as stored:
            if not hasattr(stored, "files"):
                raise ValueError("one array, not an archive of named ones")
            return {name: stored[name] for name in names if name in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path.name} is not an .npz of images: {error}") from error


def _gaussian(path: Path, mean: NDArray[np.generic], covariance: NDArray[np.generic]) -> Gaussian:
    mu, sigma = mean.astype(np.float64), covariance.astype(np.float64)
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise UserError(f"{path.name}: moments of shapes {mu.shape} and {sigma.shape} do not belong together")
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise UserError(f"{path.name}: its moments are not finite")
    return gaussian_of(mu, sigma)
