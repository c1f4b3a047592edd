"""Images that are gone through part by part: 5,000 of 1024² are 16 GB, and no figure needs them at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from harness.canonical import digest_bytes, digest_file, digest_json
from harness.datasets.adm import adm_images
from harness.errors import UserError
from harness.metrics.extractors import BATCH

PART = 32
"""Images whose features are kept together, and the most that are in memory at once."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Part:
    """A run of images.

    Attributes:
        digest: of their content, formed without decoding them.
        batches: yields uint8 [n, height, width, 3] of up to 16 images of one size.
    """

    digest: str
    batches: Callable[[], Iterator[Pixels]]


class Images(Protocol):
    """A source of images that can be gone through more than once."""

    def parts(self) -> Iterator[Part]:
        """Yield all images in runs, which stay the same when more images follow."""
        ...


class Pictures(Images, Protocol):
    """Images of one size whose number is known: those of a cell."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, height, width, 3)."""
        ...

    def runs(self, size: int) -> Iterator[Pixels]:
        """Yield uint8 [up to size, height, width, 3] in order; only the last may be shorter."""
        ...


class Array:
    """Images in memory, uint8 [n, height, width, 3]."""

    def __init__(self, images: Pixels) -> None:
        """Keep the array; nothing is copied."""
        self._images = images

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self._images.shape

    def runs(self, size: int) -> Iterator[Pixels]:
        """Yield runs of up to `size` images."""
        for start in range(0, len(self._images), size):
            yield self._images[start : start + size]

    def parts(self) -> Iterator[Part]:
        """Yield runs of 32, by the digest of shape and pixels."""
        for run in self.runs(PART):
            digest = digest_json([list(run.shape), digest_bytes(np.ascontiguousarray(run).tobytes())])
            yield Part(digest, lambda run=run: Array(run).runs(BATCH))  # type: ignore[misc]


class Files:
    """Images in files, decoded when they are looked at."""

    def __init__(self, files: Sequence[Path]) -> None:
        """Name the files, in order; none is read yet."""
        self._files = list(files)

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of files, and the size of the first one's image.

        Raises:
            UserError: it cannot be decoded.
        """
        return len(self._files), *decode(self._files[0]).shape

    def runs(self, size: int) -> Iterator[Pixels]:
        """Yield runs of up to `size` images of one size; a run ends where the size changes.

        Raises:
            UserError: an image cannot be decoded.
        """
        held: list[Pixels] = []
        for file in self._files:
            image = decode(file)
            if held and (held[0].shape != image.shape or len(held) == size):
                yield np.stack(held)
                held = []
            held.append(image)
        if held:
            yield np.stack(held)

    def parts(self) -> Iterator[Part]:
        """Yield runs of 32 files, by the digest of their bytes."""
        for start in range(0, len(self._files), PART):
            files = self._files[start : start + PART]
            digest = digest_json([digest_file(file) for file in files])
            yield Part(digest, lambda files=files: Files(files).runs(BATCH))  # type: ignore[misc]


class Archive:
    """The images of ADM's .npz, read batch by batch: those of ImageNet at 256² are 10 GB."""

    def __init__(self, path: Path) -> None:
        """Name the file; `read_adm` has found images in it."""
        self._path = path

    def parts(self) -> Iterator[Part]:
        """Yield the whole file; going through it raises UserError when it is damaged."""
        yield Part(digest_file(self._path), lambda: adm_images(self._path, BATCH))


def decode(file: Path) -> Pixels:
    """Return the image in a file as uint8 [height, width, 3].

    Raises:
        UserError: it is none, or damaged, or larger than Pillow thinks safe.
    """
    from PIL import Image

    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB"), dtype=np.uint8)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{file.name} is not an image that can be read: {error}") from error
