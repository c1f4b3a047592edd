"""The figures of a cell: what each is called, means and needs. Importing this package loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.errors import UserError
from harness.metrics.sources import WEIGHTS, check_given

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
        data: key of the weights it needs (`harness.metrics.sources.WEIGHTS`), or None. On the embedded world
            the metrics of Inception features that have recogniser features need none.
    """

    name: str
    unit: str
    better: Literal["higher", "lower"]
    paired: bool
    min_n: int
    summary: str
    data: str | None = None


_SPACE = "recogniser features on scenes, else Inception's"

METRICS: dict[str, MetricSpec] = {
    spec.name: spec
    for spec in (
        MetricSpec(
            "psnr", "dB", "higher", True, 1, "peak signal-to-noise ratio against the reference's image"
        ),
        MetricSpec(
            "psnr_pooled",
            "dB",
            "higher",
            True,
            1,
            "PSNR of the mean squared error over all images: never infinite",
        ),
        MetricSpec("ssim", "", "higher", True, 1, "structural similarity to the reference's image"),
        MetricSpec(
            "ms_ssim",
            "",
            "higher",
            True,
            1,
            "multi-scale SSIM to the reference's image; sides over 160 pixels",
        ),
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
            "lpips_vgg",
            "",
            "lower",
            True,
            1,
            "LPIPS (VGG-16) to the reference's image; needs weights",
            "lpips-vgg",
        ),
        MetricSpec(
            "lpips_scene", "", "lower", True, 1, "LPIPS formula on the scene recogniser's feature maps"
        ),
        MetricSpec("fid", "", "lower", False, MIN_N, f"FID against real images: {_SPACE}", "inception"),
        MetricSpec("fid_ref", "", "lower", False, MIN_N, f"FID against the reference: {_SPACE}", "inception"),
        MetricSpec(
            "fid_clean",
            "",
            "lower",
            False,
            MIN_N,
            "FID against real images after clean-fid's resizing, as SVDQuant",
            "inception",
        ),
        MetricSpec(
            "fid_clean_ref",
            "",
            "lower",
            False,
            MIN_N,
            "FID against the reference after clean-fid's resizing",
            "inception",
        ),
        MetricSpec(
            "fid_delta",
            "",
            "lower",
            False,
            MIN_N,
            "FID minus the reference's FID, paired by prompt",
            "inception",
        ),
        MetricSpec(
            "kid_delta",
            "",
            "lower",
            False,
            MIN_N,
            "KID minus the reference's KID, paired by prompt",
            "inception",
        ),
        MetricSpec(
            "sfid", "", "lower", False, MIN_N, "FID of Inception's spatial features, as ADM", "inception"
        ),
        MetricSpec("kid", "", "lower", False, MIN_N, f"KID against real images: {_SPACE}", "inception"),
        MetricSpec(
            "inception_score", "", "higher", False, MIN_N, "inception score, ten shuffled splits", "inception"
        ),
        MetricSpec(
            "precision",
            "",
            "higher",
            False,
            MIN_N,
            "share of images among the real ones (k = 3)",
            "inception",
        ),
        MetricSpec(
            "recall",
            "",
            "higher",
            False,
            MIN_N,
            "share of real images among the generated (k = 3)",
            "inception",
        ),
        MetricSpec(
            "density", "", "higher", False, MIN_N, "real neighbourhoods an image lies in (k = 5)", "inception"
        ),
        MetricSpec(
            "coverage",
            "",
            "higher",
            False,
            MIN_N,
            "share of real images with an image near (k = 5)",
            "inception",
        ),
        MetricSpec("cmmd", "", "lower", False, MIN_N, "CLIP maximum mean discrepancy, unbiased", "clip-336"),
        MetricSpec(
            "fd_dinov2", "", "lower", False, MIN_N, "Fréchet distance of DINOv2 ViT-L/14 features", "dinov2"
        ),
        MetricSpec(
            "prompt_accuracy", "", "higher", False, 1, "share of images that show all their prompt says"
        ),
        MetricSpec(
            "clip_score", "", "higher", False, 1, "100 cos of image and prompt, CLIP ViT-L/14", "clip"
        ),
        MetricSpec("clip_iqa", "", "higher", False, 1, "CLIP-IQA: good photo against bad, ViT-L/14", "clip"),
        MetricSpec(
            "image_reward", "", "higher", False, 1, "mean ImageReward score; needs weights", "image-reward"
        ),
    )
}

REAL_IMAGES = "reference-images"
DATA_PATHS = (*WEIGHTS, REAL_IMAGES)
"""Keys of `--data-path` that metrics read: weights by their key, and the real images of the prompt set."""


def check_data_path(key: str, path: Path) -> None:
    """Check a path given for a metric, without loading it.

    Raises:
        UserError: the file, the folder, or a file inside the folder does not exist.
    """
    if key in WEIGHTS:
        check_given(key, path)
    elif not path.exists():
        raise UserError(f"--data-path {key}: {path} does not exist")


def check_data_paths(data_paths: Mapping[str, Path]) -> None:
    """Check every path among `data_paths` that belongs to a metric; others are left alone.

    Raises:
        UserError: as `check_data_path`.
    """
    for key, path in data_paths.items():
        if key in DATA_PATHS:
            check_data_path(key, path)
