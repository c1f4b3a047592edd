"""Layers, inputs and jobs for the tests of methods: heavy tails, outlier channels, correlated inputs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from harness.methods import registry
from harness.methods.contract import LayerKind, LayerTarget, QuantizeJob

STEPS = 4


class FakeStream:
    """A calibration stream held in memory: `CalibrationStream` computed from given inputs."""

    def __init__(self, inputs: Mapping[str, Tensor]) -> None:
        self._inputs = dict(inputs)
        self.steps = STEPS

    def absmax(self, name: str) -> Tensor:
        x = self._inputs[name]
        return x.transpose(0, 1).flatten(1).abs().amax(dim=1)

    def step_range(self, name: str) -> Tensor:
        x = self._inputs[name]
        grow = torch.linspace(0.5, 1, STEPS)
        return torch.stack([x.amin() * grow, x.amax() * grow], dim=1)

    def samples(self, name: str) -> Tensor:
        return self._inputs[name]


class Net(nn.Module):
    """Two linear layers that share an input, one that does not, and two convolutions."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.q = nn.Linear(64, 40)
        self.k = nn.Linear(64, 24)
        self.down = nn.Linear(96, 40, bias=False)
        self.conv = nn.Conv2d(12, 20, 3, padding=1)
        self.point = nn.Conv2d(16, 30, 1)
        generator = torch.Generator().manual_seed(seed)
        for layer in (self.q, self.k, self.down, self.conv, self.point):
            _heavy_tailed(layer.weight, generator)
            if layer.bias is not None:
                layer.bias.detach().copy_(torch.randn(len(layer.bias), generator=generator))


NAMES = ("q", "k", "down", "conv", "point")


def _heavy_tailed(weight: Tensor, generator: torch.Generator) -> None:
    """Fill with Gaussian rows of different energies; some rows get a few large values."""
    rows = weight.detach().flatten(1)
    rows.copy_(torch.randn(rows.shape, generator=generator) * 0.05)
    rows.mul_(torch.exp(0.5 * torch.randn(len(rows), 1, generator=generator)))
    outliers = torch.rand(rows.shape, generator=generator) < 0.01
    outliers &= (torch.arange(len(rows)) % 3 == 0)[:, None]
    rows[outliers] *= 8


def inputs(seed: int = 0, tokens: int = 300) -> dict[str, Tensor]:
    """Correlated inputs of log-normal channel energies, one of them an outlier channel."""
    generator = torch.Generator().manual_seed(seed + 100)
    found = {}
    for name, shape in (
        ("q", (tokens, 64)),
        ("down", (tokens, 96)),
        ("conv", (6, 12, 8, 8)),
        ("point", (6, 16, 8, 8)),
    ):
        channels = shape[1]
        mix = torch.randn(channels, channels, generator=generator) / channels**0.5
        energy = torch.exp(0.7 * torch.randn(channels, generator=generator))
        energy[1] *= 10
        x = torch.randn(shape, generator=generator).transpose(0, 1).flatten(1)
        x = (mix + torch.eye(channels)) @ x * energy[:, None]
        found[name] = x.view(channels, shape[0], *shape[2:]).transpose(0, 1).contiguous()
    return {**found, "k": found["q"]}


def job(
    method: str,
    bits: int,
    *,
    net: Net | None = None,
    x: Mapping[str, Tensor] | None = None,
    a_bits: int = 8,
    seed: int = 0,
) -> QuantizeJob:
    """Build a job of all layers; weight-only methods get 16-bit activations."""
    if registry.get(method).weight_only:
        a_bits = 16
    kinds: dict[str, LayerKind] = {
        name: "conv2d" if name in ("conv", "point") else "linear" for name in NAMES
    }
    groups = {"q": "qk", "k": "qk"}
    targets = tuple(
        LayerTarget(name, "test", kinds[name], bits, a_bits, groups.get(name, name)) for name in NAMES
    )
    return QuantizeJob(net or Net(seed), targets, FakeStream(x or inputs(seed)), width=64)


def run(method: str, job: QuantizeJob, **settings: str) -> QuantizeJob:
    """Quantize the job's net in place by a registered method."""
    with torch.no_grad():
        registry.get(method).quantize(job, registry.configure(method, settings))
    return job


def output_error(job: QuantizeJob, x: Mapping[str, Tensor], reference: Net) -> dict[str, float]:
    """Relative squared output error of every layer, through the packed layers themselves."""
    found = {}
    with torch.no_grad():
        for name in NAMES:
            layer = reference.get_submodule(name)
            wanted = layer(x[name])
            got = job.denoiser.get_submodule(name)(x[name])
            bias = layer.bias if isinstance(layer.bias, Tensor) else torch.zeros(wanted.shape[1])
            energy = (wanted - bias.view(1, -1, *[1] * (wanted.dim() - 2))).square().sum()
            found[name] = float((got - wanted).square().sum() / energy)
    return found
