"""Methods on a layer that does not lie in host memory: nothing mixes devices, and nothing changes."""

from __future__ import annotations

import layer_jobs
import pytest
import torch
from second_device import AwayTensor, second_device
from torch import Tensor

from harness.calibrate import Calibration, InputStatistics
from harness.methods import registry
from harness.methods.libraries.contract import LibrarySpec


class AwayStream(layer_jobs.FakeStream):
    """What `Calibration.on` does, for a stream held in memory."""

    def __init__(self, inputs: dict[str, Tensor], device: torch.device) -> None:
        super().__init__(inputs)
        self._device = device

    def absmax(self, name: str) -> Tensor:
        return super().absmax(name).to(self._device)

    def step_range(self, name: str) -> Tensor:
        return super().step_range(name).to(self._device)

    def samples(self, name: str) -> Tensor:
        return super().samples(name).to(self._device)


@torch.no_grad()
def test_the_second_device_refuses_what_a_gpu_refuses() -> None:
    host = torch.arange(6.0).view(2, 3)
    with second_device() as device:
        away = host.to(device)
        assert away.device == (away + 1).device == torch.zeros(2, device=device).device == device
        assert (2 * away).cpu().tolist() == (2 * host).tolist()
        assert away[torch.tensor([1])].device == device
        for mix in (
            lambda: away + host,
            lambda: torch.where(host > 1, away, 0.0),
            lambda: host[away[0].long()],
        ):
            with pytest.raises(RuntimeError, match=r"same device|into a tensor of the host"):
                mix()


OWN = [name for name in registry.names() if not isinstance(registry.get(name), LibrarySpec)]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("method", OWN)
@torch.no_grad()
def test_a_method_gives_the_same_layers_on_a_second_device(method: str, bits: int) -> None:
    here = layer_jobs.run(method, layer_jobs.job(method, bits)).denoiser.state_dict()
    with second_device() as device:
        job = layer_jobs.job(method, bits)
        job.denoiser.to(device)
        job.calibration = AwayStream(layer_jobs.inputs(), device)
        there = layer_jobs.run(method, job).denoiser
        state = there.state_dict()
        assert all(isinstance(tensor, AwayTensor) for tensor in state.values())
        assert state.keys() == here.keys()
        assert all(torch.equal(state[name].cpu(), tensor) for name, tensor in here.items())
        for name, x in layer_jobs.inputs().items():
            assert there.get_submodule(name)(x.to(device)).device == device


@torch.no_grad()
def test_a_calibration_hands_out_its_tensors_on_the_device_asked_for() -> None:
    entry = InputStatistics(torch.ones(3), torch.tensor([[0.0, 1.0]]), torch.ones(5, 3))
    kept = Calibration(1, {"g": entry}, {"a": "g"})
    with second_device() as device:
        on = kept.on(device)
        assert [t.device for t in (on.absmax("a"), on.step_range("a"), on.samples("a"))] == [device] * 3
    assert kept.samples("a").device.type == "cpu"
