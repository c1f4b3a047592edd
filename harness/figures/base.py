"""What figures are formed from, and what one is."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.datasets.contract import Prompt
from harness.metrics import METRICS
from harness.metrics.features import FeatureCache
from harness.metrics.images import Array, Pictures
from harness.metrics.real_images import RealImages, find_real
from harness.metrics.sources import Found, find
from harness.reports.record import Metric
from harness.reports.statistics import t_interval

NO_REFERENCE = "n/a: no reference"
SCENES = "scenes"

Figure = tuple[Metric, list[float | None] | None]
"""A metric, and its value for each prompt where it has one.

For FID and KID that is the figure plus the influence of the prompt's image on it: the mean over prompts is
the figure, and differences pair as those of other metrics do.
"""


@dataclass(frozen=True)
class CellData:
    """All that the figures of a cell are formed from.

    Attributes:
        images: uint8 [n, height, width, 3] in the order of the prompts, or files that hold such.
        features: the recogniser's features of them, float32 [n, 64], or None to read them here.
        prompts: n prompts.
        reference_images: the reference cell's images for the same prompts and noise, or None (for the
            reference itself, or when it failed).
        reference_features: float32 [n, 64] of those, or None.
        dataset: name of the prompt set.
        data_paths: paths given with `--data-path`; metrics read the keys of `DATA_PATHS`.
        cache: where networks' features are kept, or None.
        device: what networks run on.
    """

    images: NDArray[np.uint8] | Pictures
    features: NDArray[np.float32] | None
    prompts: Sequence[Prompt]
    reference_images: NDArray[np.uint8] | Pictures | None = None
    reference_features: NDArray[np.float32] | None = None
    dataset: str = SCENES
    data_paths: Mapping[str, Path] = field(default_factory=dict)
    cache: Path | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError("a cell without images has no figures")
        rows = (self.images, self.features, self.reference_images, self.reference_features)
        if any(array is not None and array.shape[0] != len(self.prompts) for array in rows):
            raise ValueError(f"every array must have one row for each of the {len(self.prompts)} prompts")

    @property
    def pictures(self) -> Pictures:
        """The images, to be gone through part by part."""
        return Array(self.images) if isinstance(self.images, np.ndarray) else self.images

    @property
    def reference_pictures(self) -> Pictures | None:
        """The reference cell's images, likewise."""
        theirs = self.reference_images
        return Array(theirs) if isinstance(theirs, np.ndarray) else theirs

    @functools.cached_property
    def real(self) -> RealImages:
        """The real images to compare with; raises UserError when those given cannot be read."""
        return find_real(self.prompts, self.dataset, self.data_paths)

    @property
    def store(self) -> FeatureCache:
        """Where features of networks come from."""
        return FeatureCache(self.cache, self.device)

    def find(self, key: str) -> Found | None:
        """Return the weights `key`, or None when they are missing.

        On the embedded world weights of the hub's cache are left alone: what ships with the package must not
        depend on, or wait for, what happens to lie on a machine.
        """
        return find(key, self.data_paths, hub=self.dataset != SCENES)


def absent(note: str) -> Figure:
    """A figure that was not formed, and why."""
    return Metric(None, note=note), None


def single(value: float, note: str | None = None) -> Figure:
    """A figure without an interval."""
    return Metric(value, note=note), None


def of_influence(value: float, influence: NDArray[np.float64], note: str | None = None) -> Figure:
    """A figure of all images, and what each of them adds; no interval, because it is biased by their number.

    Args:
        value: the figure.
        influence: float64 [n] of the images, mean 0.
        note: remark on the figure.
    """
    return Metric(value, note=note), finite((value + influence).tolist())


def mean(values: Iterable[float | None], note: str | None = None, most: float = math.inf) -> Figure:
    """The mean over prompts with its t interval, which ends at the `most` the metric can be."""
    listed = finite(values)
    value, lo, hi = t_interval(listed)
    return Metric(value, lo, None if hi is None else min(hi, most), note), listed


def finite(values: Iterable[float | None]) -> list[float | None]:
    """Replace infinite and NaN values, which JSON cannot hold, by None."""
    return [None if value is None or not math.isfinite(value) else float(value) for value in values]


def too_few(names: Iterable[str], n: int) -> dict[str, Figure]:
    """Return those of `names` that are not formed from as few as `n` images."""
    return {name: absent(f"n/a: N < {METRICS[name].min_n}") for name in names if n < METRICS[name].min_n}
