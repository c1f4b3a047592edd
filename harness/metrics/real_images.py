"""The real images a prompt set is compared with: a folder of pictures, or an .npz as ADM publishes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from harness.canonical import digest_bytes, digest_file, digest_json
from harness.datasets.adm import adm_images, read_adm
from harness.errors import UserError
from harness.metrics.extractors import BATCH
from harness.metrics.fid import Gaussian, gaussian_of

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


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


class Archive:
    """The images of ADM's .npz, read batch by batch: those of ImageNet at 256² are 10 GB."""

    def __init__(self, path: Path) -> None:
        """Name the file; `read_adm` has found images in it."""
        self._path = path

    def digest(self) -> str:
        """Return the digest of the file."""
        return digest_file(self._path)

    def batches(self) -> Iterator[NDArray[np.uint8]]:
        """Yield runs of up to 16 images; raises UserError when the file is damaged."""
        return adm_images(self._path, BATCH)


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
        """Open a folder or an .npz file.

        Raises:
            UserError: it is neither, or it is damaged.
        """
        self.images: Images | None = None
        self._moments: dict[str, Gaussian] = {}
        if path.is_dir():
            self.images = Folder(path)
            return
        found = read_adm(path)
        if found.images is not None:
            self.images = Archive(path)
        for feature, moments in (("pool", found.pool), ("spatial", found.spatial)):
            if moments is not None:
                self._moments[feature] = gaussian_of(*moments)

    def moments(self, feature: str) -> Gaussian | None:
        """Return the stored moments of `pool` or `spatial`, or None; they are over more images than arr_0."""
        return self._moments.get(feature)
