"""The scene recogniser as a feature extractor of torch-fidelity."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from harness.compat import ensure_torchvision

NAME = "scene-recogniser"
LAYER = "64"
"""The one feature layer, named by its width as torch-fidelity does."""


def register_scene_recogniser(load: Callable[[], Any] | None = None) -> str:
    """Register the recogniser with torch-fidelity, once per process; later calls change nothing.

    Afterwards `torch_fidelity.calculate_metrics(..., feature_extractor="scene-recogniser")` takes datasets of
    uint8 [3, 64, 64] images.

    Args:
        load: returns the recogniser; by default the shipped one.

    Returns:
        The name it is registered under.
    """
    ensure_torchvision()
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

    if NAME not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(NAME, extractor_class(load or _shipped))
    return NAME


def _shipped() -> Any:
    from harness.datasets.scenes.recogniser import load_recogniser

    return load_recogniser()


def extractor_class(load: Callable[[], Any]) -> type[Any]:
    """Return a torch-fidelity extractor class around the recogniser that `load` returns.

    Its features are float64 [n, 64], so that torch-fidelity sums them as precisely as `harness.metrics.fid`.
    """
    ensure_torchvision()
    import torch
    from torch import Tensor
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    class SceneExtractor(FeatureExtractorBase):  # type: ignore[misc]
        """Features of the scene recogniser, as torch-fidelity asks for them."""

        def __init__(self, name: str, features_list: list[str], **_kwargs: Any) -> None:
            super().__init__(name, features_list)
            # A copy: torch-fidelity may move its extractor to another device.
            self.recogniser = copy.deepcopy(load())

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return (LAYER,)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return LAYER

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        @staticmethod
        def get_dummy_input_for_compile() -> Tensor:
            return torch.zeros(1, 3, 64, 64, dtype=torch.uint8)

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            features = self.recogniser(images.to(torch.float32) / 255).features
            return (features.double(),)

    return SceneExtractor
