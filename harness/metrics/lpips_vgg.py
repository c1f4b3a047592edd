"""LPIPS with a VGG-16 backbone (Zhang et al., CVPR 2018); its scale is not AlexNet's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.metrics.lpips import load_lpips, lpips_distances


def lpips_vgg(
    backbone: Path, images: NDArray[np.uint8], reference: NDArray[np.uint8], device: str = "cpu"
) -> NDArray[np.float64]:
    """Return the LPIPS distance of each image from its reference.

    Args:
        backbone: state dict of torchvision's VGG-16.
        images: uint8 [n, height, width, 3].
        reference: uint8, same shape.
        device: to compute on.

    Returns:
        float64 [n], 0 for equal images.

    Raises:
        UserError: the file is not such a state dict.
        ValueError: the arrays differ in shape or are not uint8.
    """
    return lpips_distances(load_lpips(backbone, "vgg").to(device), images, reference)
