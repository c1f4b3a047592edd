"""Checks of the metrics that compare pairs of images."""

from __future__ import annotations

import functools
import math
import tempfile
from pathlib import Path

import numpy as np

from harness.conformance.check import Check
from harness.conformance.inputs import pair, pictures, seed_weights

_TORCHMETRICS = "torchmetrics 1.9.0 (stored)"
# structural_similarity_index_measure and multiscale_... of `pair(2, 176)`, data range 255, in float64.
_SSIM, _MS_SSIM = 0.34715783662576793, 0.7948454236309588


def _constant_errors() -> tuple[np.ndarray, np.ndarray]:
    reference = np.full((2, 8, 8, 3), 100, np.uint8)
    return np.stack([reference[0] + 3, reference[1] - 4]), reference


def _psnr() -> tuple[float, float]:
    from harness.metrics.psnr import psnr

    return float(psnr(*_constant_errors())[0]), 20 * math.log10(255 / 3)


def _psnr_pooled() -> tuple[float, float]:
    from harness.metrics.psnr_pooled import psnr_pooled

    return float(psnr_pooled(*_constant_errors()).value or 0.0), 10 * math.log10(255**2 / 12.5)


def _ssim() -> tuple[float, float]:
    from harness.metrics.ssim import ssim

    return float(ssim(*pair(2, 176)).mean()), _SSIM


def _ms_ssim() -> tuple[float, float]:
    from harness.metrics.ms_ssim import ms_ssim

    return float(ms_ssim(*pair(2, 176)).mean()), _MS_SSIM


def _lpips(net: str) -> tuple[float, float]:
    """LPIPS through our loader, and by the package on the same random backbone."""
    import torch

    from harness.compat import ensure_torchvision, quiet_imports
    from harness.metrics.lpips import load_lpips, lpips_distances

    ensure_torchvision()
    with quiet_imports():
        import lpips

        stock = lpips.LPIPS(net=net, pnet_rand=True, verbose=False).eval()
    seed_weights(stock.net, gain=math.sqrt(2))
    own = {f"features.{name.partition('.')[2]}": value for name, value in stock.net.state_dict().items()}
    images = pair(1, 64)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "backbone.pth"
        torch.save(own, file)
        found = lpips_distances(load_lpips(file, net), *images)
    with torch.inference_mode():
        a, b = (torch.from_numpy(x).permute(0, 3, 1, 2).float() / 127.5 - 1 for x in images)
        return float(found.mean()), float(stock(a, b).mean())


def _lpips_scene() -> tuple[float, float]:
    from harness.metrics.lpips_scene import lpips_scene

    stages = [np.random.default_rng(0).normal(size=(1, 5, 4, 4)).astype(np.float32)] * 2
    return float(lpips_scene(stages, [-stage for stage in stages])[0]), 8.0


def _clean_resize() -> tuple[float, float]:
    """A smaller and a larger side at once, weighted so that a shift by part of a pixel shows."""
    from harness.metrics.extractors.inception_clean import SIDE, clean_resize

    (image,) = pictures(1, 400)
    image = image[:, :150]
    weights = np.random.default_rng(2).normal(size=(SIDE, SIDE, 1))
    down, across = cubic_filter(400, SIDE), cubic_filter(150, SIDE)
    expected = np.einsum("ij,jkc,lk->ilc", down, image.astype(np.float64), across, optimize=True)
    found = clean_resize(image).astype(np.float64)
    return tuple(float((weights * x.clip(0, 255)).sum()) for x in (found, expected))  # type: ignore[return-value]


def cubic_filter(size: int, target: int) -> np.ndarray:
    """Return the matrix [target, size] of Pillow's bicubic filter: Keys' kernel (1981), a = -1/2.

    Where the image shrinks the kernel is widened by the same factor, which is the antialiasing.
    """
    scale = max(size / target, 1.0)
    centres = (np.arange(target)[:, None] + 0.5) * size / target
    t = np.abs(np.arange(size)[None, :] + 0.5 - centres) / scale
    kernel = np.where(t < 1, (1.5 * t - 2.5) * t**2 + 1, ((-0.5 * t + 2.5) * t - 4) * t + 2)
    kernel[t >= 2] = 0.0
    return np.asarray(kernel / kernel.sum(axis=1, keepdims=True))


CHECKS = (
    Check("psnr", "closed form: a constant error", _psnr, 1e-12),
    Check("psnr_pooled", "closed form: two constant errors", _psnr_pooled, 1e-12),
    Check("ssim", _TORCHMETRICS, _ssim, 1e-9),
    Check("ms_ssim", _TORCHMETRICS, _ms_ssim, 1e-7),
    Check("lpips", "the lpips package, random AlexNet", functools.partial(_lpips, "alex")),
    Check("lpips_vgg", "the lpips package, random VGG-16", functools.partial(_lpips, "vgg")),
    Check("fid_clean", "Keys' cubic kernel, widened where the image shrinks", _clean_resize, 1e-5),
    Check("lpips_scene", "closed form: opposite features", _lpips_scene, 1e-6),
)
