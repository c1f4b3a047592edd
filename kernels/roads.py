"""Which kernels a packed layer's last forward ran."""

from __future__ import annotations

from torch import nn

from harness.kernels.layers import PackedLayer


def roads_taken(denoiser: nn.Module) -> dict[str, str]:
    """Return the road of each packed layer's last forward, by module path.

    A dispatch leaves it on the layer as `road_taken`. A layer that has not run, or has one way only, is left
    out.
    """
    taken = {
        name: getattr(module, "road_taken", None)
        for name, module in denoiser.named_modules()
        if isinstance(module, PackedLayer)
    }
    return {name: road for name, road in taken.items() if isinstance(road, str) and road}
