import numpy as np
import pytest
import torch

from harness.compat import ensure_torchvision, quiet_imports
from harness.metrics.lpips_scene import lpips_scene


def stages(seed: int, n: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = [(n, 5, 8, 8), (n, 7, 4, 4)]
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def test_agrees_with_the_lpips_package_without_learned_weights() -> None:
    ensure_torchvision()
    with quiet_imports():
        import lpips

        torch.manual_seed(0)
        model = lpips.LPIPS(net="squeeze", lpips=False, pretrained=False, pnet_rand=True, verbose=False)
    a, b = torch.rand(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.inference_mode():
        expected = model(a, b).flatten().numpy()
        maps = [[s.numpy() for s in model.net(model.scaling_layer(x))] for x in (a, b)]
    assert expected.min() > 0
    np.testing.assert_allclose(lpips_scene(*maps), expected, rtol=1e-4)


def test_opposite_features_have_distance_four_per_stage() -> None:
    maps = stages(0)
    np.testing.assert_allclose(lpips_scene(maps, [-m for m in maps]), 8.0, rtol=1e-6)


def test_the_length_of_feature_vectors_does_not_matter() -> None:
    maps, other = stages(0), stages(1)
    scaled = [m * 3.0 for m in maps]
    np.testing.assert_allclose(lpips_scene(scaled, other), lpips_scene(maps, other), rtol=1e-5)


def test_equal_and_empty_features_are_at_distance_zero() -> None:
    maps = [np.zeros((2, 4, 3, 3), np.float32)]
    assert lpips_scene(maps, maps).tolist() == [0.0, 0.0]
    assert lpips_scene(stages(2), stages(2)).tolist() == [0.0, 0.0, 0.0]


def test_other_stages_are_refused() -> None:
    with pytest.raises(ValueError, match="same stages"):
        lpips_scene(stages(0), stages(0)[:1])
    with pytest.raises(ValueError, match="same stages"):
        lpips_scene([], [])
