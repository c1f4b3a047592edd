"""Every part of SVDQuant: what it does to the error of layers, and against straightforward computations."""

from __future__ import annotations

import math
from typing import Any

import layer_jobs as jobs
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from harness.errors import UserError
from harness.kernels.activations import ActQuantizer
from harness.kernels.layers import PackedConv2d, PackedLinear
from harness.kernels.weights import Nvfp4Weight
from harness.methods import registry
from harness.methods.contract import LayerTarget, QuantizeJob
from harness.methods.lowrank import decompose
from harness.methods.objective import _choose
from harness.methods.rounding import round_uniform

STAGES = ("naive", "smooth", "low-rank", "both", "refine", "gptq")


def wide_layer(seed: int = 0) -> tuple[nn.Linear, torch.Tensor, torch.Tensor]:
    """A 256 x 256 layer with a decaying spectrum, and two samples of inputs with outlier channels."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(256, 256, bias=False)
    left, right = (torch.linalg.qr(torch.randn(256, 256, generator=generator))[0] for _ in range(2))
    layer.weight.data = (left * torch.logspace(0, -1, 256)) @ right.T
    x = torch.randn(1200, 256, generator=generator) * torch.exp(0.5 * torch.randn(256, generator=generator))
    mix = torch.eye(256) + 0.5 * torch.randn(256, 256, generator=generator) / 16
    x = x @ mix
    x[:, ::37] *= 12  # outlier channels
    return layer, x[:800].contiguous(), x[800:].contiguous()


def errors(rank: str = "32", **shared: str) -> dict[str, float]:
    """Output error of each stage of the ablation on inputs that the method has not seen."""
    found = {}
    for stage, member in zip(STAGES, registry.variants("svdquant", "ablation"), strict=True):
        layer, seen, fresh = wide_layer()
        settings = {**({"rank": rank} if "rank" not in member else {}), **shared, **member}
        quantized = quantize(layer, seen, **settings)
        wanted = layer(fresh)
        found[stage] = float((quantized(fresh) - wanted).square().sum() / wanted.square().sum())
    return found


def quantize(layer: nn.Linear, x: torch.Tensor, bits: int = 4, after: Any = "", **settings: str) -> nn.Module:
    net = nn.ModuleDict({"l": layer})
    target = LayerTarget("l", "ffn.down", "linear", bits, 4, "l", after)
    job = QuantizeJob(net, (target,), jobs.FakeStream({"l": x}), width=256, embedded=False)
    jobs.run("svdquant", job, **settings)
    net_layer, net["l"] = net["l"], layer
    return net_layer


@pytest.fixture(scope="module")
def ablation() -> dict[str, float]:
    with torch.no_grad():
        return errors()


def test_output_error_falls_with_every_part_of_the_ablation(ablation: dict[str, float]) -> None:
    assert ablation["naive"] > ablation["smooth"] > ablation["both"] > ablation["refine"]
    assert ablation["naive"] > ablation["low-rank"] > ablation["both"]
    assert ablation["refine"] < 0.9 * ablation["both"]
    assert ablation["gptq"] < ablation["refine"]


def test_planted_outliers_cost_three_times_less_than_naively(ablation: dict[str, float]) -> None:
    assert ablation["refine"] < ablation["naive"] / 3


@pytest.mark.parametrize("bits", [2, 3])
def test_low_bit_residuals_gain_from_gptq(bits: int) -> None:
    with torch.no_grad():
        layer, seen, fresh = wide_layer()
        wanted = layer(fresh)
        nearest, feedback = (
            quantize(layer, seen, bits, rounding=r, rank="32", iterations="1") for r in ("nearest", "gptq")
        )
        before, after = (float((q(fresh) - wanted).square().sum()) for q in (nearest, feedback))
    assert after < 0.95 * before  # the rest is that of the 4-bit activations
    assert torch.equal(nearest.weight.scale, feedback.weight.scale)
    assert nearest.bytes_by_part() == feedback.bytes_by_part()


def test_refinement_is_the_alternation_written_out() -> None:
    """Branch from numpy's SVD, absmax / 7 per group of 64, scored with quantized inputs; the best is kept."""
    layer, seen, _ = wide_layer()
    with torch.no_grad():
        done = quantize(layer, seen, grid="1", rank="16", iterations="4", rescale="true", svd="exact")
        chosen = _choose(len(seen), 512)
        x = seen[chosen].double().numpy()
        xq = done.act(seen[chosen]).double().numpy()
    w = layer.weight.detach().double().numpy()
    fit, found = np.zeros_like(w), []
    for _ in range(5):
        u, s, vt = np.linalg.svd(w - fit)
        branch = (u[:, :16] * s[:16]) @ vt[:16]
        groups = (w - branch).reshape(256, 4, 64)
        scale = np.abs(groups).max(axis=2, keepdims=True) / 7
        fit = (np.round(groups / scale).clip(-7, 7) * scale).reshape(256, 256)
        found.append(float(np.square(x @ (w - branch).T - xq @ fit.T).sum()))
    with torch.no_grad():
        product = done.branch.product().double().numpy()
        got = float(np.square(x @ (w - product).T - xq @ done.weight.dequantize().double().numpy().T).sum())
    assert found[0] > 1.02 * min(found)
    assert got == pytest.approx(min(found), rel=5e-3)


def test_refining_can_end_at_the_first_step_that_is_no_better() -> None:
    """From the second step on this error only rises: stopping early keeps what taking all steps keeps."""
    layer, seen, _ = wide_layer()
    with torch.no_grad():
        stopped = quantize(layer, seen, grid="1", rank="4", iterations="1", early_stop="true")
        once = quantize(layer, seen, grid="1", rank="4", iterations="1")
    for name, tensor in stopped.state_dict().items():
        assert torch.equal(tensor, once.state_dict()[name])


@pytest.mark.parametrize("algorithm", ["exact", "randomized"])
def test_decompositions_reach_numpys_error(algorithm: Any) -> None:
    weight = wide_layer()[0].weight.detach()
    u, s, vt = np.linalg.svd(weight.double().numpy())
    state = torch.get_rng_state()
    down, up = decompose(weight, 16, algorithm)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(decompose(weight, 16, algorithm)[0], down)
    left = float((weight - up @ down).double().square().sum())
    best = float(np.square(s[16:]).sum())
    assert best * (1 - 1e-6) <= left <= best * (1 + (1e-6 if algorithm == "exact" else 2e-2))
    if algorithm == "exact":
        np.testing.assert_allclose((up @ down).numpy(), (u[:, :16] * s[:16]) @ vt[:16], atol=1e-5)


def test_randomized_svd_costs_little_of_the_layers_error() -> None:
    with torch.no_grad():
        layer, seen, fresh = wide_layer()
        wanted = layer(fresh)
        exact, randomized = (
            float((quantize(layer, seen, rank="32", grid="5", svd=a)(fresh) - wanted).square().sum())
            for a in ("exact", "randomized")
        )
    assert randomized == pytest.approx(exact, rel=0.05)


def attention(shared: bool) -> tuple[jobs.Net, QuantizeJob]:
    work = jobs.job("svdquant", 4)
    roles = {"q": "attn.q", "k": "attn.k"}
    work.targets = tuple(
        LayerTarget(t.name, roles.get(t.name, t.role), t.kind, 4, 8, t.input_group) for t in work.targets
    )
    return jobs.Net(), jobs.run("svdquant", work, shared=str(shared), grid="1", iterations="0", svd="exact")


def test_a_shared_branch_is_the_svd_of_the_stacked_weights() -> None:
    net, work = attention(shared=True)
    q, k = (work.denoiser.get_submodule(name) for name in "qk")
    assert torch.equal(q.branch.down, k.branch.down)
    stacked = torch.cat([net.q.weight, net.k.weight]).detach().double().numpy()
    u, s, vt = np.linalg.svd(stacked, full_matrices=False)
    product = torch.cat([q.branch.product(), k.branch.product()]).numpy()
    np.testing.assert_allclose(product, (u[:, :4] * s[:4]) @ vt[:4], atol=1e-3)
    apart = attention(shared=False)[1].denoiser
    assert not torch.equal(apart.get_submodule("q").branch.down, apart.get_submodule("k").branch.down)
    assert work.denoiser.get_submodule("down").branch.rank == 4


@pytest.mark.parametrize("a_bits", [4, 8])
def test_shifted_activations_are_integers_and_a_corrected_bias(a_bits: int) -> None:
    """What a kernel of unsigned integers would do: no sign, and shift * (row sums) taken off the bias."""
    generator = torch.Generator().manual_seed(3)
    x = F.gelu(2 * torch.randn(5, 128, generator=generator))
    smooth = torch.exp(torch.randn(128, generator=generator)).half()
    weight = round_uniform(torch.randn(7, 128, generator=generator), 4, group=64, grid="narrow").pack()
    act = ActQuantizer(a_bits, "group", "dynamic", True, shift=0.171875)
    bias = torch.randn(7, generator=generator).half()
    layer = PackedLinear(weight, bias=bias, act=act, smooth=smooth)
    matrix, s = weight.dequantize().double().numpy(), smooth.double().numpy()
    shifted = ((x.double().numpy() + 0.171875) / s).reshape(5, 2, 64)
    assert shifted.min() >= 0
    scale = shifted.max(axis=2, keepdims=True) / (2**a_bits - 1)
    codes = np.round(shifted / scale)
    assert codes.max() == 2**a_bits - 1
    corrected = bias.double().numpy() - 0.171875 * (matrix / s).sum(axis=1)
    expected = (codes * scale).reshape(5, 128) @ matrix.T + corrected
    np.testing.assert_allclose(layer(x).numpy(), expected, rtol=1e-4, atol=1e-4)


def test_a_shifted_convolution_pads_with_the_shift() -> None:
    generator = torch.Generator().manual_seed(4)
    x = F.silu(2 * torch.randn(2, 6, 5, 5, generator=generator))
    conv = nn.Conv2d(6, 4, 3, padding=1)
    smooth = torch.exp(0.3 * torch.randn(6, generator=generator)).half()
    weight = round_uniform(torch.randn(4, 54, generator=generator), 4, group=64, grid="narrow").pack()
    act = ActQuantizer(4, "tensor", "dynamic", True, shift=0.2734375)
    layer = PackedConv2d.like(conv, weight, act=act, smooth=smooth)
    kernel = weight.dequantize().view(4, 6, 3, 3)
    shift = 0.2734375 / smooth.float()
    shifted = x / smooth.float()[:, None, None] + shift[:, None, None]
    scale = shifted.flatten(1).amax(dim=1).view(2, 1, 1, 1) / 15
    codes = (shifted / scale).round().clamp(0, 15) * scale
    padded = shift[:, None, None].expand(2, 6, 7, 7).clone()
    padded[:, :, 1:-1, 1:-1] = codes
    correction = (kernel * shift[:, None, None]).sum(dim=(1, 2, 3))
    with torch.no_grad():
        expected = F.conv2d(padded, kernel, conv.bias.half().float() - correction)
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)


def test_unsigned_inputs_behind_gelu_lower_the_error() -> None:
    with torch.no_grad():
        layer, seen, fresh = wide_layer()
        seen, fresh = F.gelu(seen), F.gelu(fresh)
        wanted = layer(fresh)
        error = {}
        for unsigned in ("true", "false"):
            got = quantize(layer, seen, 6, "gelu", unsigned=unsigned)(fresh)
            error[unsigned] = float((got - wanted).square().sum())
        plain = quantize(layer, seen, 4, "", unsigned="true", grid="1", rank="0")
    assert error["true"] < 0.6 * error["false"]
    assert plain.act.shift == 0


def test_the_published_settings_run_and_are_a_named_set() -> None:
    (published,) = registry.variants("svdquant", "published")
    assert published["grid"] == "39"
    with torch.no_grad():
        layer, seen, fresh = wide_layer()
        done = quantize(layer, seen, 4, "gelu", **{**published, "iterations": "2", "rank": "8"})
    assert done.branch.rank == 8
    assert done.act.shift == pytest.approx(0.171875)
    assert math.isfinite(float(done(fresh).sum()))
    with pytest.raises(UserError, match=r"unknown set of svdquant 'ablations'; did you mean ablation\?"):
        registry.variants("svdquant", "ablations")
    with pytest.raises(UserError, match="nf4 has no named sets"):
        registry.variants("nf4", "ablation")


def test_nvfp4_residuals_and_inputs() -> None:
    with torch.no_grad():
        layer, seen, fresh = wide_layer()
        wanted = layer(fresh)
        both, naive, integer = (
            quantize(layer, seen, rank=rank, grid=grid, iterations="2", format=name)
            for rank, grid, name in (("32", "9", "nvfp4"), ("0", "1", "nvfp4"), ("0", "1", "int"))
        )
        errors = [float((q(fresh) - wanted).square().sum()) for q in (both, naive, integer)]
    assert isinstance(both.weight, Nvfp4Weight)
    assert both.act.format == "nvfp4"
    assert errors[0] < errors[1] / 3
    # Groups of 16 in place of 64: outlier channels spoil fewer neighbours.
    assert errors[1] < errors[2]
    with pytest.raises(UserError, match="gptq needs a uniform grid"):
        registry.configure("svdquant", {"format": "nvfp4", "rounding": "gptq"})
    with pytest.raises(ValueError, match="4 bits, not 3"):
        quantize(layer, seen, 3, format="nvfp4")
