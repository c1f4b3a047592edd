"""Inception-v3 after clean-fid's resizing (Parmar et al., "On Aliased Resizing", CVPR 2022)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harness.metrics.extractors import Arrays
from harness.metrics.extractors.inception import POOL, network
from harness.metrics.sources import Found

SIDE = 299
_STAGES = (
    "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3",
    "MaxPool_2", "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d",
    "Mixed_6e", "Mixed_7a", "Mixed_7b", "Mixed_7c",
)  # fmt: skip
"""The network's modules in the order of its forward, as torch-fidelity names them."""


class CleanInception:
    """`pool` of images resized as clean-fid does, for SVDQuant's FID.

    Its mode `clean`: each channel in floats, Pillow's bicubic filter with antialiasing, cut off at 0 and 255
    and not rounded. The weights are those of `Inception`; only the resizing differs.
    """

    version = 1

    def __init__(self, found: Found, device: str = "cpu") -> None:
        """Build the network; raises UserError as `Inception` does."""
        self._net, self._device = network(found).to(device), device

    def __call__(self, images: NDArray[np.uint8]) -> Arrays:
        """Return the feature of uint8 [n, height, width, 3] images."""
        import torch

        resized = np.stack([clean_resize(image) for image in images])
        batch = torch.from_numpy(resized).permute(0, 3, 1, 2).to(self._device)
        # The network's own forward takes 8-bit images only and resizes them; these are floats of its size.
        with torch.inference_mode():
            maps = (batch - 128) / 128
            for stage in _STAGES:
                maps = getattr(self._net, stage)(maps)
            pool = self._net.AvgPool(maps).flatten(1)
        return {POOL: pool.float().cpu().numpy()}


def clean_resize(image: NDArray[np.uint8], side: int = SIDE) -> NDArray[np.float32]:
    """Resize an image as clean-fid does.

    Args:
        image: uint8 [height, width, 3].
        side: of the result, in pixels.

    Returns:
        float32 [side, side, 3] in 0..255.
    """
    from PIL import Image

    channels = [Image.fromarray(image[..., i].astype(np.float32)) for i in range(image.shape[2])]
    resized = [np.asarray(c.resize((side, side), Image.Resampling.BICUBIC)) for c in channels]
    return np.asarray(np.clip(np.stack(resized, axis=2), 0.0, 255.0), dtype=np.float32)
