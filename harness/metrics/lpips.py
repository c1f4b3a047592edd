"""LPIPS with an AlexNet backbone (Zhang et al., CVPR 2018), by the lpips package.

The package ships the learned linear weights; the backbone is torchvision's file `alexnet-owt-7be5be79.pth`,
which the user supplies or which lies in torch's cache. Nothing is downloaded.
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

BACKBONE = "alexnet-owt-7be5be79.pth"


def find_backbone(given: Path | None) -> Path | None:
    """Return the backbone's file: the one given, else the one in torch's cache, else None."""
    import torch

    if given is not None:
        return given
    cached = Path(torch.hub.get_dir()) / "checkpoints" / BACKBONE
    return cached if cached.is_file() else None


def load_lpips(backbone: Path) -> nn.Module:
    """Build LPIPS (version 0.1, AlexNet) on the backbone in a file.

    Args:
        backbone: state dict of torchvision's AlexNet.

    Raises:
        UserError: the file is not such a state dict.
    """
    ensure_torchvision()
    with quiet_imports():
        import lpips

        model: nn.Module = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    trunk = model.get_submodule("net")
    shapes = {name: weight.shape for name, weight in trunk.state_dict().items()}
    state = load_tensors(backbone)
    # Layers keep their index in AlexNet's `features`, but are dealt out to five slices.
    own = {name: f"features.{name.partition('.')[2]}" for name in shapes}
    wrong = [
        theirs for name, theirs in own.items() if theirs not in state or state[theirs].shape != shapes[name]
    ]
    if wrong:
        raise UserError(f"{backbone.name} is not a state dict of AlexNet: {wrong[0]} is missing or misshapen")
    trunk.load_state_dict({name: state[theirs] for name, theirs in own.items()})
    return model.eval()


def lpips_distances(
    model: nn.Module, images: NDArray[np.uint8], reference: NDArray[np.uint8]
) -> NDArray[np.float64]:
    """Return the LPIPS distance of each image from its reference.

    Args:
        model: an LPIPS model of the lpips package, on the CPU.
        images: uint8 [n, height, width, 3].
        reference: uint8, same shape.

    Returns:
        float64 [n], 0 for equal images.

    Raises:
        ValueError: the arrays differ in shape or are not uint8.
    """
    import torch

    check_pairs(images, reference)
    with torch.inference_mode():
        pairs = [
            [torch.from_numpy(array[i : i + 1]).permute(0, 3, 1, 2) / 255 for array in (images, reference)]
            for i in range(len(images))
        ]
        return np.array([model(a, b, normalize=True).item() for a, b in pairs], dtype=np.float64)
