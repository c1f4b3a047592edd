"""Fréchet distance of DINOv2 features.

Stein et al., "Exposing flaws of generative model evaluation metrics and their unfair treatment of diffusion
models" (NeurIPS 2023).
"""

from __future__ import annotations

from harness.metrics.fid import Features, fid


def fd_dinov2(features: Features, reference: Features) -> float:
    """Return the Fréchet distance between class-token features of DINOv2 ViT-L/14.

    Args:
        features: float [n, 1024] of the images.
        reference: float [m, 1024] of the reference images.

    Raises:
        ValueError: fewer than two rows, or other widths.
    """
    return fid(features, reference)
