"""Networks that turn images into features. One file each; importing this package loads no torch."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

BATCH = 16
"""Images that go through a network at once."""

Arrays = dict[str, NDArray[np.float32]]


class Extractor(Protocol):
    """A network with its weights."""

    version: int
    """Of the extractor's own code: raised when its features change."""

    def __call__(self, images: NDArray[np.uint8]) -> Arrays:
        """Return features by name, float32 [n, d] each, of uint8 [n, height, width, 3] images."""
        ...
