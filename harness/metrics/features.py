"""Features of images, formed once and kept: a network's pass over 5,000 images is what metrics cost."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from harness.canonical import digest_file, digest_json
from harness.files import replace_file
from harness.metrics.extractors import Arrays, Extractor
from harness.metrics.images import Images, Part
from harness.metrics.sources import Found

_LIBRARIES = ("torch", "torch-fidelity", "transformers", "pillow")
_DIGEST_BYTES = 32


@dataclass(frozen=True)
class FeatureCache:
    """Features on disk, by what they are of.

    Attributes:
        folder: where they are kept, or None to keep none.
        device: what they are formed on.
    """

    folder: Path | None
    device: str = "cpu"

    def features(
        self, kind: Callable[[Found, str], Extractor], version: int, found: Found, images: Images
    ) -> Arrays:
        """Return the features of images, of which no more than one part is in memory at a time.

        Args:
            kind: builds the network from its weights on a device; called when something is not stored.
            version: of the extractor's code.
            found: its weights.
            images: what to look at.

        Returns:
            Features by name, float32 [n, d] each.
        """
        about = {
            "extractor": getattr(kind, "__name__", ""),
            "version": version,
            "weights": {name: digest_file(path) for name, path in found.files.items()},
            "libraries": {name: metadata.version(name) for name in _LIBRARIES},
            "device": self.device,
        }
        network = functools.cache(lambda: kind(found, self.device))
        return _joined([self._of_part(about, network, part) for part in images.parts()])

    def _of_part(self, about: Mapping[str, Any], network: Callable[[], Extractor], part: Part) -> Arrays:
        """Return the features of one part: those stored, else formed now and stored."""
        path = None
        if self.folder is not None:
            path = self.folder / f"{digest_json({**about, 'images': part.digest})[:24]}.features"
        stored = None if path is None else _read(path)
        if stored is not None:
            return stored
        arrays = _joined([network()(batch) for batch in part.batches()])
        if path is not None:
            _write(path, arrays)
        return arrays


def _joined(parts: Sequence[Arrays]) -> Arrays:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _write(path: Path, arrays: Mapping[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]) -> None:
    from safetensors.numpy import save

    data = save(dict(arrays))
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, hashlib.sha256(data).digest() + data)


def _read(path: Path) -> Arrays | None:
    """Return what `_write` wrote, or None when it is missing or damaged."""
    from safetensors.numpy import load

    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    digest, data = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    return load(data) if hashlib.sha256(data).digest() == digest else None
