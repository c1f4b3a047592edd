"""LPIPS (Zhang et al., CVPR 2018) with an AlexNet or a VGG-16 backbone, by the lpips package.

The package ships the learned linear weights; the backbone is torchvision's file, which the user supplies or
which lies in torch's cache. Nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from harness.compat import ensure_torchvision, quiet_imports
from harness.errors import UserError
from harness.metrics.psnr import check_pairs
from harness.metrics.weights import load_tensors

if TYPE_CHECKING:
    from torch import nn

_TRUNKS = {"alex": "AlexNet", "vgg": "VGG-16"}


def load_lpips(backbone: Path, net: str = "alex") -> nn.Module:
    """Build LPIPS (version 0.1) on the backbone in a file.

    Args:
        backbone: state dict of torchvision's AlexNet or VGG-16.
        net: `alex` or `vgg`.

    Raises:
        UserError: the file is not such a state dict.
    """
    ensure_torchvision()
    with quiet_imports():
        import lpips

        model: nn.Module = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    trunk = model.get_submodule("net")
    shapes = {name: weight.shape for name, weight in trunk.state_dict().items()}
    state = load_tensors(backbone)
    # Layers keep their index in the network's `features`, but are dealt out to five slices.
    own = {name: f"features.{name.partition('.')[2]}" for name in shapes}
    wrong = [
        theirs for name, theirs in own.items() if theirs not in state or state[theirs].shape != shapes[name]
    ]
    if wrong:
        raise UserError(
            f"{backbone.name} is not a state dict of {_TRUNKS[net]}: {wrong[0]} is missing or misshapen"
        )
    trunk.load_state_dict({name: state[theirs] for name, theirs in own.items()})
    return model.eval()


def lpips_distances(
    model: nn.Module, images: NDArray[np.uint8], reference: NDArray[np.uint8]
) -> NDArray[np.float64]:
    """Return the LPIPS distance of each image from its reference.

    Args:
        model: an LPIPS model of the lpips package.
        images: uint8 [n, height, width, 3].
        reference: uint8, same shape.

    Returns:
        float64 [n], 0 for equal images.

    Raises:
        ValueError: the arrays differ in shape or are not uint8.
    """
    import torch

    check_pairs(images, reference)
    device = next(model.parameters()).device
    distances = []
    with torch.inference_mode():
        for pair in zip(images, reference, strict=True):
            a, b = (torch.from_numpy(i).to(device).permute(2, 0, 1)[None] / 255 for i in pair)
            distances.append(model(a, b, normalize=True).item())
    return np.array(distances, dtype=np.float64)
