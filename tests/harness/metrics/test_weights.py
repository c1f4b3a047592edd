import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.canonical import digest_file
from harness.compat import ensure_torchvision, quiet_imports
from harness.errors import UserError
from harness.metrics.lpips import load_lpips, lpips_distances
from harness.metrics.sources import WEIGHTS, find
from harness.metrics.weights import load_tensors, single_thread

BACKBONE = WEIGHTS["lpips-alex"].file


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


def image_pair() -> tuple[np.ndarray, np.ndarray]:
    a, b = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64, 3), dtype=np.uint8)
    b[2] = a[2]
    return a, b


def test_lpips_equals_the_stock_package_on_the_same_backbone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure_torchvision()
    import lpips
    import torchvision

    torch.manual_seed(0)
    alexnet = torchvision.models.alexnet(weights=None)
    file = tmp_path / BACKBONE
    torch.save({k: v for k, v in alexnet.state_dict().items() if k.startswith("features.")}, file)
    with monkeypatch.context() as patch, quiet_imports():
        patch.setattr(lpips.pretrained_networks.tv, "alexnet", lambda pretrained: alexnet)
        stock = lpips.LPIPS(net="alex", verbose=False)
    a, b = image_pair()
    with torch.inference_mode():
        pair = [torch.from_numpy(x).permute(0, 3, 1, 2).float() / 127.5 - 1 for x in (a, b)]
        expected = stock(*pair).flatten().numpy()
    found = lpips_distances(load_lpips(file), a, b)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-9)
    assert found[2] == 0
    assert found[0] > 0


def test_the_backbone_is_the_given_file_or_the_one_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert find("lpips-alex", {}) is None
    cached = Path(torch.hub.get_dir()) / "checkpoints" / BACKBONE
    cached.parent.mkdir(parents=True)
    cached.touch()
    assert find("lpips-alex", {}).path() == cached
    mine = tmp_path / "mine.pth"
    mine.touch()
    assert find("lpips-alex", {"lpips-alex": mine}).path() == mine


def test_a_file_of_another_network_is_the_users_mistake(tmp_path: Path) -> None:
    file = tmp_path / "resnet.pth"
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, file)
    with pytest.raises(UserError, match=r"resnet.pth is not a state dict of AlexNet: features.0"):
        load_lpips(file)


def test_pickled_code_is_never_run(tmp_path: Path) -> None:
    file, trace = tmp_path / "evil.pth", tmp_path / "ran"
    torch.save({"features.0.weight": Payload(trace)}, file)
    with pytest.raises(UserError, match=r"evil\.pth is not a file of weights"):
        load_tensors(file)
    file.write_bytes(pickle.dumps(Payload(trace)))
    with pytest.raises(UserError, match=r"evil\.pth is not a file of weights"):
        load_tensors(file)
    assert not trace.exists()


@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04broken"])
def test_damaged_files_are_one_clear_line(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"weights\.pth is not a file of weights") as caught:
        load_tensors(file)
    assert "\n" not in str(caught.value)


def test_what_is_no_dict_of_tensors_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    for content in ([torch.zeros(1)], {"a": 1.0}):
        torch.save(content, file)
        with pytest.raises(UserError, match="not a state dict of tensors"):
            load_tensors(file)


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"abc" * 100_000)
    assert digest_file(file) == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_single_thread_restores_the_number_of_threads() -> None:
    before = torch.get_num_threads()

    def fail_inside() -> None:
        with single_thread():
            assert torch.get_num_threads() == 1
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail_inside()
    assert torch.get_num_threads() == before
