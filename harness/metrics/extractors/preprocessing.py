"""Resizing and normalising of images for networks of transformers, by Pillow alone.

The image processors of transformers changed their resizing between versions; this is their Pillow path.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def centre_crop(images: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Resize the shorter side to `side` (bicubic, antialiased) and cut out the centre square.

    Args:
        images: uint8 [n, height, width, 3].
        side: of the result, in pixels.

    Returns:
        uint8 [n, side, side, 3].
    """
    from PIL import Image

    height, width = images.shape[1:3]
    short = min(height, width)
    size = (side * width // short, side * height // short)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    box = (left, top, left + side, top + side)
    done = [np.asarray(Image.fromarray(i).resize(size, Image.Resampling.BICUBIC).crop(box)) for i in images]
    return np.stack(done)


def normalise(images: NDArray[np.uint8], mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Return (image / 255 - mean) / std of uint8 [n, h, w, 3] images as float32 [n, 3, h, w]."""
    import torch

    scaled = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    shape = (1, 3, 1, 1)
    return (scaled - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
