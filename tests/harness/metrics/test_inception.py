import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from harness.compat import ensure_torchvision
from harness.conformance.inputs import pictures
from harness.conformance.networks import inception_weights
from harness.errors import UserError
from harness.metrics import kid as kid_module
from harness.metrics.distances import neighbour_radii
from harness.metrics.extractors.inception import LOGITS, POOL, SPATIAL, Inception
from harness.metrics.fid import fid
from harness.metrics.inception_score import inception_score
from harness.metrics.kid import kid
from harness.metrics.precision import NEIGHBOURS, precision
from harness.metrics.recall import recall
from harness.metrics.sources import find

ensure_torchvision()
N = 12


class Pictures(Dataset):
    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.images[index]).permute(2, 0, 1).contiguous()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch.save(inception_weights(), path)
    return path


@pytest.fixture(scope="module")
def extractor(file: Path) -> Inception:
    return Inception(find("inception", {"inception": file}))


@pytest.mark.slow
def test_figures_on_images_equal_torch_fidelity(
    file: Path, extractor: Inception, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch_fidelity

    made, real = pictures(N, 64, 1), pictures(N + 2, 64, 2)
    theirs = torch_fidelity.calculate_metrics(
        input1=Pictures(made), input2=Pictures(real), cuda=False, isc=True, fid=True, kid=True, prc=True,
        feature_extractor="inception-v3-compat", feature_extractor_weights_path=str(file), kid_subsets=100,
        kid_subset_size=N, cache=False, save_cpu_ram=True, verbose=False, batch_size=4,
    )  # fmt: skip
    monkeypatch.setattr(kid_module, "SUBSET_SIZE", N)
    a, b = extractor(made), extractor(real)
    assert fid(a[POOL], b[POOL]) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    assert kid(a[POOL], b[POOL]) == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)
    assert inception_score(a[LOGITS]) == pytest.approx(theirs["inception_score_mean"], rel=1e-4)
    radii = neighbour_radii(b[POOL], NEIGHBOURS)
    assert precision(a[POOL], b[POOL], radii) == pytest.approx(theirs["precision"], abs=1e-4)
    assert recall(a[POOL], b[POOL]) == pytest.approx(theirs["recall"], abs=1e-4)


def test_spatial_features_are_seven_channels_of_the_third_17x17_block(extractor: Inception) -> None:
    net, images = extractor._net, pictures(2, 299)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    x = (pixels - 128) / 128
    names = [
        "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3",
        "MaxPool_2", "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c",
    ]  # fmt: skip
    with torch.inference_mode():
        for name in names:
            x = getattr(net, name)(x)
        branch = net.Mixed_6d.branch1x1(x)[:, :7].permute(0, 2, 3, 1).numpy()
    found = extractor(images)[SPATIAL]
    assert found.shape == (2, 2023)
    np.testing.assert_allclose(found, branch.reshape(2, -1), rtol=1e-4, atol=1e-5)


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


def test_a_pickle_that_would_execute_is_refused(tmp_path: Path) -> None:
    evil, trace = tmp_path / "evil.pth", tmp_path / "ran"
    for content in (Payload(trace), {"fc.bias": Payload(trace)}):
        evil.write_bytes(pickle.dumps(content))
        with pytest.raises(UserError, match=r"evil\.pth is not a file of weights"):
            Inception(find("inception", {"inception": evil}))
    assert not trace.exists()


def test_another_network_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.pth"
    torch.save({"fc.bias": torch.zeros(3)}, other)
    with pytest.raises(UserError, match=r"other\.pth does not hold torch-fidelity's Inception-v3"):
        Inception(find("inception", {"inception": other}))
