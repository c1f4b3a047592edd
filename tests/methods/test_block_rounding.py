"""Blocks of a denoiser, and the rounding of a block's layers learned together."""

from __future__ import annotations

import layer_jobs
import pytest
import torch
from torch import nn

from harness.errors import UserError
from harness.kernels.layers import PackedLayer
from harness.methods import registry
from harness.methods.blocks import block_calls, block_of, by_block, denoiser_batches, joined
from harness.methods.contract import LayerTarget, QuantizeJob
from harness.methods.training.trajectories import Trajectories

WIDTH, STEPS, COUNT = 12, 3, 6


class Block(nn.Module):
    """Two layers whose errors can make up for one another."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.nn.functional.gelu(self.up(x + shift)))


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.transformer_blocks = nn.ModuleList([Block(), Block()])
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / WIDTH**0.5)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor]:
        x = self.embed(sample)
        for block in self.transformer_blocks:
            x = block(x, shift=timestep.view(-1, 1, 1) / 1000)
        return (x,)


class Teacher:
    def record(self, count, budget_bytes, features):
        samples = torch.randn(COUNT, 1, STEPS, 5, WIDTH, generator=torch.Generator().manual_seed(1))
        return Trajectories(
            "sample", torch.tensor([900, 500, 100]), 1.0, samples, samples, None, "", {}, {}
        )  # fmt: skip


def job(bits=2):
    denoiser = Denoiser().eval()
    names = ["embed", *(f"transformer_blocks.{i}.{name}" for i in (0, 1) for name in ("up", "down"))]
    targets = tuple(LayerTarget(n, "test", "linear", bits, 8, n) for n in names)
    sizes = {n: denoiser.get_submodule(n).in_features for n in names}
    generator = torch.Generator().manual_seed(2)
    samples = {n: torch.randn(20, size, generator=generator) for n, size in sizes.items()}
    stream = layer_jobs.FakeStream(samples)
    return QuantizeJob(denoiser, targets, stream, WIDTH, teacher=Teacher(), seed=3)


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("transformer_blocks.3.attn1.to_out.0", "transformer_blocks.3"),
        ("mid.attentions.0.transformer_blocks.0.ff.net.0.proj", "mid.attentions.0.transformer_blocks.0"),
        ("up_blocks.0.resnets.2.conv1", "up_blocks.0.resnets.2"),
        ("single_transformer_blocks.7.proj_mlp", "single_transformer_blocks.7"),
        ("down_blocks.0.downsamplers.0.conv", None),
        ("down_blocks.1.attentions.0.proj_in", None),
        ("conv_in", None),
    ],
)  # fmt: skip
def test_the_block_of_a_layer(name, block):
    assert block_of(name) == block


def test_layers_are_grouped_by_block_in_order():
    groups = [(block, [t.name for t in targets]) for block, targets in by_block(job().targets)]
    first, second = ([f"transformer_blocks.{i}.{n}" for n in ("up", "down")] for i in (0, 1))
    assert groups == [(None, ["embed"]), ("transformer_blocks.0", first), ("transformer_blocks.1", second)]


def test_a_block_is_handed_what_the_denoiser_hands_it():
    denoiser = job().denoiser
    batches = denoiser_batches(Teacher().record(6, 0, False), 2, 3, 7, torch.device("cpu"))
    assert [batch["sample"].shape for batch in batches] == [(3, 5, WIDTH)] * 2
    assert not torch.equal(batches[0]["sample"], batches[1]["sample"])
    calls = block_calls(denoiser, "transformer_blocks.1", batches)
    for call, batch in zip(calls, batches, strict=True):
        with torch.no_grad():
            torch.testing.assert_close(call.wanted, denoiser(**batch)[0])
            shift = batch["timestep"].view(-1, 1, 1) / 1000
            before = denoiser.transformer_blocks[0](denoiser.embed(batch["sample"]), shift)
        torch.testing.assert_close(call.args[0], before)
    denoiser.transformer_blocks = denoiser.transformer_blocks[:1]
    with pytest.raises(AttributeError):
        block_calls(denoiser, "transformer_blocks.1", batches)


def error_of_blocks(denoiser):
    """Squared error of every block on fresh inputs, against the float block on the same inputs."""
    exact = Denoiser()
    x = torch.randn(64, 5, WIDTH, generator=torch.Generator().manual_seed(9))
    x = exact.embed(x)
    with torch.no_grad():
        return sum(
            float((ours(x, torch.tensor(0.5)) - theirs(x, torch.tensor(0.5))).square().sum())
            for ours, theirs in zip(denoiser.transformer_blocks, exact.transformer_blocks, strict=True)
        )


def quantized(method="adaround", bits=2, **settings):
    made = job(bits)
    registry.get(method).quantize(made, registry.configure(method, settings))
    return made


@pytest.mark.parametrize("bits", [2, 3])
def test_a_block_errs_less_than_rounded_to_nearest_and_than_layer_by_layer(bits):
    block = quantized(bits=bits, steps="200")
    layer = quantized(bits=bits, reconstruct="layer", steps="200")
    nearest = quantized("ptq", bits=bits)
    errors = [error_of_blocks(made.denoiser) for made in (block, layer, nearest)]
    assert errors[0] < 0.8 * errors[2]
    assert errors[0] < errors[1]
    assert all(isinstance(block.denoiser.get_submodule(t.name), PackedLayer) for t in block.targets)
    assert any(note["rounded_otherwise"] > 0 for note in block.notes.values())


def test_codes_move_by_one_at_most_and_grids_not_at_all():
    learned, nearest = quantized(bits=3, steps="50").denoiser, quantized("ptq", bits=3).denoiser
    for name in ("transformer_blocks.0.up", "transformer_blocks.1.down"):
        a, b = learned.get_submodule(name).weight, nearest.get_submodule(name).weight
        assert torch.equal(a.scale, b.scale)
        assert torch.equal(a.zero, b.zero)
        steps = (a.dequantize() - b.dequantize()) / a.scale.float()
        assert float(steps.abs().max()) <= 1.01


def test_a_block_needs_a_teacher_and_says_what_to_set():
    made = job()
    made.teacher = None
    with pytest.raises(ValueError, match="reconstruct=layer"):
        registry.get("adaround").quantize(made, registry.configure("adaround", {}))
    registry.get("adaround").quantize(made, registry.configure("adaround", {"reconstruct": "layer"}))
    with pytest.raises(UserError):
        registry.configure("adaround", {"reconstruct": "model"})


def test_streams_of_a_joint_block_are_one_output():
    a, b = torch.ones(2, 3, 4), torch.zeros(2, 5, 4)
    assert joined((a, b)).shape == (2, 32)
    assert joined((a, None)) is a
