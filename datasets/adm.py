"""Reads ADM's reference batches: statistics of real images in Inception's feature space, and the images.

Source: https://github.com/openai/guided-diffusion, `evaluations/`: an .npz with the mean and covariance of
pool_3 (`mu`, `sigma`, 2,048 features) and of the spatial features behind sFID (`mu_s`, `sigma_s`, 2,023), and
the images, `arr_0`. They were formed with TensorFlow's Inception; statistics of other weights do not compare.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from harness.errors import UserError

_POOL, _SPATIAL = ("mu", "sigma"), ("mu_s", "sigma_s")
_IMAGES = "arr_0"
_LARGEST_SIDE = 4096
"""Of features and of images; a file that declares more is not a reference batch, whatever it holds."""
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError)

T = TypeVar("T")


class Moments(NamedTuple):
    """Mean and covariance of features: float64 [d] and [d, d]."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]


@dataclass(frozen=True)
class AdmReference:
    """What a reference batch holds; ADM's own hold everything.

    Attributes:
        pool: moments of the pooled features, or None when the file holds none.
        spatial: moments of the spatial features, or None.
        images: shape of the images, (n, height, width, 3), or None.
    """

    pool: Moments | None
    spatial: Moments | None
    images: tuple[int, int, int, int] | None


def read_adm(path: Path) -> AdmReference:
    """Read the statistics of a reference batch; the images stay in the file (`adm_images`).

    Raises:
        UserError: the file is missing, no .npz, damaged, holds a pickled object, has other shapes, or holds
            neither statistics nor images.
    """

    def read(archive: zipfile.ZipFile) -> AdmReference:
        found = AdmReference(_moments(archive, _POOL), _moments(archive, _SPATIAL), _image_shape(archive))
        if found == AdmReference(None, None, None):
            raise ValueError(f"it holds neither images ({_IMAGES}) nor moments ({', '.join(_POOL)})")
        return found

    return _opened(path, read)


def adm_images(path: Path, batch: int) -> Iterator[NDArray[np.uint8]]:
    """Yield the images of a reference batch, uint8 [at most `batch`, height, width, 3], without loading all.

    Raises:
        UserError: as for `read_adm`, or the file holds no images.
    """
    shape = _opened(path, _image_shape)
    if shape is None:
        raise UserError(f"{path} holds no images ({_IMAGES})")
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{_IMAGES}.npy") as file:
            _header(file, _IMAGES)
            for start in range(0, shape[0], batch):
                count = min(batch, shape[0] - start)
                size = count * shape[1] * shape[2] * shape[3]
                data = file.read(size)
                if len(data) < size:
                    raise ValueError(f"{_IMAGES} is cut off")
                yield np.frombuffer(data, np.uint8).reshape(count, *shape[1:])
    except (OSError, *_DAMAGE) as error:
        raise UserError(f"{path} cannot be read as ADM's reference batch: {error}") from error


def _opened(path: Path, read: Callable[[zipfile.ZipFile], T]) -> T:
    if not path.is_file():
        raise UserError(f"{path} is not a file" if path.exists() else f"{path} does not exist")
    try:
        with zipfile.ZipFile(path) as archive:
            return read(archive)
    except (OSError, *_DAMAGE) as error:
        raise UserError(f"{path} cannot be read as ADM's reference batch: {error}") from error


def _header(file: IO[bytes], name: str) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    """Read the header of one array; what follows in `file` are its numbers."""
    version = np.lib.format.read_magic(file)  # type: ignore[no-untyped-call]
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"{name} has format version {version}")
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    shape, fortran, dtype = readers[version](file)  # type: ignore[no-untyped-call]
    if dtype.hasobject:
        raise ValueError(f"{name} holds pickled objects, which are not loaded")
    if fortran and len(shape) > 1:
        raise ValueError(f"{name} is stored by columns")
    return shape, dtype


def _moments(archive: zipfile.ZipFile, names: tuple[str, str]) -> Moments | None:
    held = [name for name in names if f"{name}.npy" in archive.namelist()]
    if not held:
        return None
    if len(held) < len(names):
        raise ValueError(f"it holds {held[0]} alone of {' and '.join(names)}")
    mean, covariance = (_statistic(archive, name, rank) for rank, name in enumerate(names, start=1))
    if covariance.shape != (len(mean), len(mean)):
        raise ValueError(f"{names[1]} has shape {covariance.shape}, {names[0]} has {len(mean)} features")
    return Moments(mean, covariance)


def _statistic(archive: zipfile.ZipFile, name: str, rank: int) -> NDArray[np.float64]:
    with archive.open(f"{name}.npy") as file:
        shape, dtype = _header(file, name)
        if len(shape) != rank or dtype.kind != "f" or not all(1 <= size <= _LARGEST_SIDE for size in shape):
            raise ValueError(f"{name} is {dtype} {shape}")
        size = int(np.prod(shape)) * dtype.itemsize
        data = file.read(size)
    if len(data) < size:
        raise ValueError(f"{name} is cut off")
    values = np.frombuffer(data, dtype).reshape(shape).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds numbers that are not finite")
    return values


def _image_shape(archive: zipfile.ZipFile) -> tuple[int, int, int, int] | None:
    if f"{_IMAGES}.npy" not in archive.namelist():
        return None
    with archive.open(f"{_IMAGES}.npy") as file:
        shape, dtype = _header(file, _IMAGES)
    if len(shape) != 4 or shape[3] != 3 or dtype != np.uint8 or not 1 <= max(shape[1:]) <= _LARGEST_SIDE:
        raise ValueError(f"{_IMAGES} is {dtype} {shape}, not uint8 images")
    n, height, width, channels = shape
    return n, height, width, channels
