"""Inputs of checks: the same bytes on every machine and under every version of torch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def pictures(n: int, side: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return smooth colour images with noise, uint8 [n, side, side, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    waves = rng.uniform(1, 6, (n, 3, 2))
    phases = rng.uniform(0, 2 * np.pi, (n, 3))
    images = np.empty((n, side, side, 3))
    for i in range(n):
        for c in range(3):
            images[i, ..., c] = 128 + 90 * np.sin(waves[i, c, 0] * x + waves[i, c, 1] * y + phases[i, c])
    images += rng.normal(0, 8, images.shape)
    return np.clip(np.rint(images), 0, 255).astype(np.uint8)


def pair(n: int, side: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return images and noisier copies of them, uint8 [n, side, side, 3] each."""
    images = pictures(n, side)
    noise = np.random.default_rng(1).normal(0, 20, images.shape)
    return np.clip(np.rint(images + noise), 0, 255).astype(np.uint8), images


def cloud(n: int, width: int, seed: int, shift: float = 0.0) -> NDArray[np.float32]:
    """Return correlated Gaussian features, float32 [n, width]."""
    rng = np.random.default_rng(100)
    mixing = rng.normal(size=(width, width)) / np.sqrt(width)
    rows = np.random.default_rng(seed).normal(size=(n, width)) @ mixing
    return np.asarray(rows + shift, dtype=np.float32)


def seed_weights(module: Any, gain: float = 1.0) -> Any:
    """Fill a network with weights from NumPy, scaled so that activations neither vanish nor explode.

    Matrices and filters are Gaussian with variance gain² / fan-in, norms start at one, other vectors at zero.

    Returns:
        The module, in evaluation mode.
    """
    import torch

    rng = np.random.default_rng(7)
    with torch.no_grad():
        for name, tensor in sorted(module.state_dict().items()):
            if not tensor.is_floating_point() or tensor.ndim == 0:
                continue
            if tensor.ndim > 1:
                fan_in = max(tensor[0].numel(), 1)
                values = rng.normal(0, gain / np.sqrt(fan_in), tuple(tensor.shape))
                tensor.copy_(torch.from_numpy(values))
            else:
                one = name.endswith(("running_var", "weight"))
                tensor.fill_(1.0 if one else 0.0)
    return module.eval()
