"""DINOv2 (Oquab et al., "Learning Robust Visual Features without Supervision", 2023), by transformers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harness.compat import ensure_torchvision, quiet_imports
from harness.metrics.extractors import Arrays
from harness.metrics.extractors.preprocessing import IMAGENET_MEAN, IMAGENET_STD, centre_crop, normalise
from harness.metrics.sources import Found
from harness.metrics.weights import load_pretrained

TOKEN = "token"
SIDE = 224


class DinoV2:
    """The class token after the last norm, `token`: 1,024 features for ViT-L/14.

    Images are resized to 224 pixels (bicubic), as Stein et al. do for FD-DINOv2.
    """

    version = 1

    def __init__(self, found: Found, device: str = "cpu", side: int = SIDE) -> None:
        """Build the network; raises UserError when a file is malformed."""
        ensure_torchvision()
        with quiet_imports():
            from transformers import Dinov2Config, Dinov2Model

        weights = found.path("model.safetensors", "pytorch_model.bin")
        model = load_pretrained(Dinov2Model, Dinov2Config, found.path("config.json"), weights)
        self._model, self._device, self._side = model.to(device), device, side

    def __call__(self, images: NDArray[np.uint8]) -> Arrays:
        """Return the feature of uint8 [n, height, width, 3] images."""
        import torch

        pixels = normalise(centre_crop(images, self._side), IMAGENET_MEAN, IMAGENET_STD)
        with torch.inference_mode():
            token = self._model(pixel_values=pixels.to(self._device)).last_hidden_state[:, 0]
        return {TOKEN: token.float().cpu().numpy()}
