"""The figures of a cell: what each is called, means and needs. Importing this package loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.errors import UserError

MIN_N = 256
"""Images below which a distribution of 64 features is not compared: its covariance says too little."""


@dataclass(frozen=True)
class MetricSpec:
    """What a metric is.

    Attributes:
        name: its key in records and rows.
        unit: unit of the figure, empty for a bare number.
        better: which direction is better.
        paired: compares each image with the reference's image of the same prompt and noise.
        min_n: images below which it is not formed.
        summary: one line for `harness list metrics`.
        data: key of the file or folder it needs from `--data-path`, or None.
    """

    name: str
    unit: str
    better: Literal["higher", "lower"]
    paired: bool
    min_n: int
    summary: str
    data: str | None = None


METRICS: dict[str, MetricSpec] = {
    spec.name: spec
    for spec in (
        MetricSpec(
            "psnr", "dB", "higher", True, 1, "peak signal-to-noise ratio against the reference's image"
        ),
        MetricSpec("ssim", "", "higher", True, 1, "structural similarity to the reference's image"),
        MetricSpec(
            "lpips",
            "",
            "lower",
            True,
            1,
            "LPIPS (AlexNet) to the reference's image; needs weights",
            "lpips-alex",
        ),
        MetricSpec(
            "lpips_scene", "", "lower", True, 1, "LPIPS formula on the scene recogniser's feature maps"
        ),
        MetricSpec("fid", "", "lower", False, MIN_N, "FID on recogniser features, against rendered scenes"),
        MetricSpec("fid_ref", "", "lower", False, MIN_N, "FID on recogniser features, against the reference"),
        MetricSpec("kid", "", "lower", False, MIN_N, "KID on recogniser features, against rendered scenes"),
        MetricSpec(
            "precision", "", "higher", False, MIN_N, "share of images among the rendered scenes (k = 3)"
        ),
        MetricSpec("recall", "", "higher", False, MIN_N, "share of rendered scenes among the images (k = 3)"),
        MetricSpec(
            "prompt_accuracy", "", "higher", False, 1, "share of images that show all their prompt says"
        ),
        MetricSpec(
            "image_reward", "", "higher", False, 1, "mean ImageReward score; needs weights", "image-reward"
        ),
    )
}

DATA_FILES: dict[str, tuple[str, ...]] = {
    "lpips-alex": (),
    "image-reward": ("ImageReward.pt", "med_config.json", "vocab.txt"),
}
"""Keys of `--data-path` that metrics read. Empty: the path is a file; else a folder of these files."""


def check_data_path(key: str, path: Path) -> None:
    """Check a path given for a metric's weights, without loading them.

    Raises:
        UserError: the file, the folder, or a file inside the folder does not exist.
    """
    names = DATA_FILES[key]
    if not names and not path.is_file():
        raise UserError(f"--data-path {key}: {path} is not a file")
    missing = [name for name in names if not (path / name).is_file()]
    if missing:
        raise UserError(f"--data-path {key}: {path} holds no {', '.join(missing)}")


def check_data_paths(data_paths: Mapping[str, Path]) -> None:
    """Check every path among `data_paths` that belongs to a metric; others are left alone.

    Raises:
        UserError: as `check_data_path`.
    """
    for key, path in data_paths.items():
        if key in DATA_FILES:
            check_data_path(key, path)
