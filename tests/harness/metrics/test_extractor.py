from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from harness.compat import ensure_torchvision
from harness.metrics.distances import neighbour_radii
from harness.metrics.extractor import LAYER, NAME, extractor_class, register_scene_recogniser
from harness.metrics.fid import fid
from harness.metrics.kid import SUBSET_SIZE, SUBSETS, kid
from harness.metrics.precision import NEIGHBOURS, precision
from harness.metrics.recall import recall
from harness.metrics.scene import to_tensor

ensure_torchvision()


class Reading(NamedTuple):
    features: Tensor


class SmallRecogniser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(3, 64, 16, 16), nn.Tanh())

    def forward(self, images: Tensor) -> Reading:
        return Reading(self.net(images * 2 - 1).mean((2, 3)))


class Images(Dataset):
    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(self.images[index]).permute(2, 0, 1).contiguous()


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> str:
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    monkeypatch.delitem(FEATURE_EXTRACTORS_REGISTRY, NAME, raising=False)
    name = register_scene_recogniser(SmallRecogniser)
    yield name
    FEATURE_EXTRACTORS_REGISTRY.pop(name, None)


def test_torch_fidelity_on_images_gives_the_same_figures(registered: str) -> None:
    import torch_fidelity

    rng = np.random.default_rng(0)
    levels = rng.integers(40, 200, (300, 8, 8, 3))
    real = np.kron(levels, np.ones((1, 8, 8, 1))).astype(np.uint8)
    made = np.clip(real[::-1].astype(int) + rng.integers(-30, 50, real.shape), 0, 255).astype(np.uint8)
    made = made[:280]
    theirs = torch_fidelity.calculate_metrics(
        input1=Images(made), input2=Images(real), feature_extractor=registered, cuda=False, isc=False,
        fid=True, kid=True, prc=True, kid_subsets=SUBSETS, kid_subset_size=SUBSET_SIZE, cache=False,
        save_cpu_ram=True, verbose=False,
    )  # fmt: skip
    net = SmallRecogniser()
    with torch.inference_mode():
        a, b = (net(to_tensor(x)).features.numpy() for x in (made, real))
    assert theirs["frechet_inception_distance"] > 1e-3
    # Batches differ between the two, so float32 features agree to their last bits only.
    assert fid(a, b) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    assert kid(a, b) == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)
    radii = neighbour_radii(b, NEIGHBOURS).astype(np.float32)
    assert precision(a, b, radii) == pytest.approx(theirs["precision"], abs=0.005)
    assert recall(a, b) == pytest.approx(theirs["recall"], abs=0.005)


def test_registering_again_changes_nothing(registered: str) -> None:
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    before = FEATURE_EXTRACTORS_REGISTRY[NAME]
    assert register_scene_recogniser(SmallRecogniser) == registered == NAME
    assert FEATURE_EXTRACTORS_REGISTRY[NAME] is before


def test_the_extractor_works_on_a_copy_of_the_recogniser() -> None:
    shared = SmallRecogniser()
    extractor = extractor_class(lambda: shared)(NAME, [LAYER])
    assert extractor.recogniser is not shared
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    (features,) = extractor(images)
    assert features.shape == (2, 64)
    assert features.dtype == torch.float64
    expected = shared(images.float() / 255).features
    torch.testing.assert_close(features.float(), expected)
