"""Inception-v3 as FID uses it (Heusel et al., 2017), by torch-fidelity."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.compat import ensure_torchvision
from harness.errors import UserError
from harness.metrics.extractors import Arrays
from harness.metrics.sources import Found
from harness.metrics.weights import load_tensors

POOL, SPATIAL, LOGITS = "pool", "spatial", "logits"
_CHANNELS = 7


def network(found: Found) -> Any:
    """Build torch-fidelity's Inception-v3; raises UserError when the file is not its state dict."""
    ensure_torchvision()
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # torch-fidelity unpickles whatever a file holds; it is handed a copy of the tensors alone.
    copy = io.BytesIO()
    torch.save(load_tensors(found.path()), copy)
    copy.seek(0)
    try:
        return FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], copy)
    except RuntimeError as error:
        raise UserError(f"{found.path().name} does not hold torch-fidelity's Inception-v3") from error


class Inception:
    """Three features of one pass.

    - `pool`: 2,048 means of the last feature map, for FID, KID, precision, recall, density, coverage
    - `spatial`: the first seven channels of `mixed_6/conv`, 7x17x17 = 2,023, for sFID as ADM forms it
    - `logits`: 1,008 classes without the last bias, for the inception score

    Images are resized to 299x299 by TensorFlow 1's bilinear rule, which FID was defined with.
    """

    version = 1

    def __init__(self, found: Found, device: str = "cpu") -> None:
        """Build the network.

        Raises:
            UserError: the file is not a state dict of torch-fidelity's Inception-v3.
        """
        self._net = network(found).to(device)
        self._device = device
        self._spatial: Any = None
        # TensorFlow's mixed_6 is the third of the four 17x17 blocks of one form, and conv its 1x1 branch.
        self._net.Mixed_6d.branch1x1.register_forward_hook(self._keep)

    def _keep(self, _module: Any, _inputs: Any, output: Any) -> None:
        self._spatial = output[:, :_CHANNELS].permute(0, 2, 3, 1).flatten(1)

    def __call__(self, images: NDArray[np.uint8]) -> Arrays:
        """Return the three features of uint8 [n, height, width, 3] images."""
        import torch

        batch = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).to(self._device)
        with torch.inference_mode():
            pool, logits = self._net(batch)
        found = {POOL: pool, SPATIAL: self._spatial, LOGITS: logits}
        return {name: value.float().cpu().numpy() for name, value in found.items()}
