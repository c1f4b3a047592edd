"""The real images a prompt set is compared with: its own, a folder, or an .npz as ADM publishes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.datasets.adm import read_adm
from harness.datasets.contract import Prompt
from harness.datasets.fileset import FileSet
from harness.datasets.images import find_images
from harness.errors import UserError
from harness.metrics import REAL_IMAGES
from harness.metrics.fid import Gaussian, gaussian_of
from harness.metrics.images import Archive, Files, Images

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
NO_REAL = "n/a: no real images: give --data-path reference-images=FOLDER or an .npz of ADM's"
MOMENTS_ALONE = "n/a: the .npz holds moments, not images"


def folder_images(path: Path) -> Files:
    """Return every picture in a folder and its subfolders, by path.

    Raises:
        UserError: there are none, or one of them is a link that leads out of the folder.
    """
    root = path.resolve()
    files = sorted(file for file in root.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise UserError(f"{path} holds no images ({', '.join(SUFFIXES)})")
    outside = next((file for file in files if not file.resolve().is_relative_to(root)), None)
    if outside is not None:
        raise UserError(f"{outside.relative_to(root)} leads out of {path}")
    return Files(files)


class RealImages:
    """What generated images are compared with.

    Attributes:
        images: the pictures, or None.
        source: what they are, for notes; empty without pictures.
        missing: the note of a figure that needs pictures where there are none.
    """

    def __init__(
        self,
        images: Images | None,
        source: str = "",
        missing: str = NO_REAL,
        moments: Mapping[str, Gaussian] | None = None,
    ) -> None:
        """Put them together; see `given_images`, `images_of_set` and `find_real`."""
        self.images, self.source, self.missing = images, source, missing
        self._moments = dict(moments or {})

    def moments(self, feature: str) -> Gaussian | None:
        """Return the stored moments of `pool` or `spatial`, or None; they are over more images than arr_0."""
        return self._moments.get(feature)


def given_images(path: Path) -> RealImages:
    """Open what `--data-path reference-images=PATH` names: a folder or an .npz file.

    Raises:
        UserError: it is neither, or it is damaged.
    """
    if path.is_dir():
        return RealImages(folder_images(path), "reference-images")
    found = read_adm(path)
    moments = {
        feature: gaussian_of(*held)
        for feature, held in (("pool", found.pool), ("spatial", found.spatial))
        if held is not None
    }
    images = None if found.images is None else Archive(path)
    return RealImages(images, "" if images is None else "reference-images", MOMENTS_ALONE, moments)


def images_of_set(prompts: Sequence[Prompt], found: FileSet, path: Path) -> RealImages:
    """Return the set's own images of the prompts: one each, or none at all.

    Raises:
        UserError: one is a link that leads out of the set's folder.
    """
    files = find_images(prompts, found, path)
    there = [file for file in files if file is not None]
    if len(there) == len(prompts):
        return RealImages(Files(there), f"{len(there)} images of {found.name}")
    gap = f"{len(prompts) - len(there)} of {len(prompts)} images of {found.name} are not beside its file"
    return RealImages(None, missing=f"n/a: no real images: {gap}; or give --data-path {REAL_IMAGES}=FOLDER")


def find_real(prompts: Sequence[Prompt], dataset: str, data_paths: Mapping[str, Path]) -> RealImages:
    """Return the real images for a set of prompts: those given by path, else the prompt set's own.

    Args:
        prompts: those that count.
        dataset: name of the prompt set.
        data_paths: paths given with `--data-path`.

    Raises:
        UserError: what is given cannot be read, or an image leads out of its folder.
    """
    from harness.datasets import registry

    if REAL_IMAGES in data_paths:
        return given_images(data_paths[REAL_IMAGES])
    found = registry.get(dataset)
    if isinstance(found, FileSet) and dataset in data_paths and all(prompt.image for prompt in prompts):
        return images_of_set(prompts, found, data_paths[dataset])
    return RealImages(None)
