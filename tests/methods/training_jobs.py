"""A small denoiser with a teacher that needs no pipeline, for the tests of training."""

from __future__ import annotations

import torch
from layer_jobs import FakeStream
from torch import Tensor, nn

from harness.methods.contract import LayerTarget, QuantizeJob
from harness.methods.training.trajectories import Trajectories

STEPS = 4
CHANNELS = 4
SIDE = 6
WIDTH = 24


class Denoiser(nn.Module):
    """A convolution and two linear layers that see noisy maps, a caption vector and the timestep."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.conv = nn.Conv2d(CHANNELS, WIDTH, 3, padding=1)
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)
        self.final = nn.Conv2d(WIDTH, CHANNELS, 1)
        for parameter in self.parameters():
            fan = parameter[0].numel() if parameter.dim() > 1 else 16
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan**0.5)

    def forward(
        self, sample: Tensor, timestep: Tensor, caption: Tensor | None = None, return_dict: bool = True
    ) -> tuple[Tensor]:
        assert caption is not None
        hidden = self.conv(sample) + caption[:, :, None, None] + timestep.view(-1, 1, 1, 1) / 1000
        tokens = hidden.flatten(2).transpose(1, 2)
        tokens = tokens + self.down(torch.nn.functional.gelu(self.up(tokens)))
        maps = tokens.transpose(1, 2).unflatten(2, (SIDE, SIDE))
        return (self.final(torch.nn.functional.silu(maps)),)


class FakeTeacher:
    """Records the denoiser on random maps, as if they were its own trajectory."""

    def __init__(self, denoiser: Denoiser, seed: int = 0) -> None:
        self._denoiser, self._seed = denoiser, seed

    def record(self, count: int, budget_bytes: int, features: bool) -> Trajectories:
        generator = torch.Generator().manual_seed(self._seed)
        maps = torch.randn(count, 1, STEPS, CHANNELS, SIDE, SIDE, generator=generator)
        samples = maps.expand(-1, 2, -1, -1, -1, -1).contiguous()
        captions = torch.randn(count, 2, WIDTH, generator=generator)
        timesteps = torch.tensor([999, 700, 400, 100])
        caught: list[Tensor] = []
        handle = self._denoiser.final.register_forward_pre_hook(lambda _m, args: caught.append(args[0]))
        rows = (count, 2, STEPS)
        with torch.no_grad():
            (predictions,) = self._denoiser(
                samples.flatten(0, 2),
                timesteps.repeat(count * 2),
                captions.unsqueeze(2).expand(*rows, WIDTH).flatten(0, 2),
            )
        handle.remove()
        return Trajectories(
            sample_name="sample",
            timesteps=timesteps,
            guidance=2.0,
            samples=samples,
            predictions=predictions.unflatten(0, rows),
            features=caught[0].half().unflatten(0, rows) if features else None,
            feature_layer="final",
            conditions={"caption": captions},
            constants={"return_dict": False},
        )


def training_job(bits: int = 2, a_bits: int = 6, seed: int = 0) -> QuantizeJob:
    """A job of the three inner layers, with a teacher."""
    denoiser = Denoiser(seed).eval()
    caught: dict[str, Tensor] = {}
    handles = [
        getattr(denoiser, name).register_forward_pre_hook(
            lambda _m, args, name=name: caught.setdefault(name, args[0].detach())
        )
        for name in ("conv", "up", "down")
    ]
    FakeTeacher(denoiser, 7).record(4, 1 << 30, False)
    for handle in handles:
        handle.remove()
    stream = FakeStream({n: x if n == "conv" else x.flatten(0, 1) for n, x in caught.items()})
    targets = tuple(
        LayerTarget(name, "test", "conv2d" if name == "conv" else "linear", bits, a_bits, name)
        for name in ("conv", "up", "down")
    )
    return QuantizeJob(denoiser, targets, stream, width=WIDTH, teacher=FakeTeacher(denoiser), seed=3)
