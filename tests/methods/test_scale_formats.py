"""Methods with two-level group scales: what is packed, what it costs, and what is refused."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import layer_jobs as jobs
import pytest
import torch

from harness.errors import UserError
from harness.kernels.activations import StepIndex
from harness.kernels.layers import PackedLayer, PackedLinear
from harness.kernels.weights import UniformWeight
from harness.methods import registry
from harness.methods.hessian import round_with_feedback, second_moment
from harness.methods.objective import LayerSample
from harness.methods.rounding import UniformRows, round_uniform
from harness.methods.training.grids import UniformGrid

FORMATS = ("integer", "e8m0")


def packed(method: str, bits: int, a_bits: int, **settings: str) -> dict[str, PackedLayer]:
    job = jobs.run(method, jobs.job(method, bits, a_bits=a_bits), **settings)
    return {name: job.denoiser.get_submodule(name) for name in jobs.NAMES}  # type: ignore[misc]


@pytest.mark.parametrize("scales", FORMATS)
@pytest.mark.parametrize("bits", [2, 4])
def test_svdquant_packs_weights_and_inputs_in_the_format(scales: str, bits: int) -> None:
    for layer in packed("svdquant", bits, 4, scales=scales, iterations="1", grid="3").values():
        assert isinstance(layer.weight, UniformWeight)
        assert layer.weight.scale_format == scales
        assert layer.weight.expand()[0].dtype == (torch.int8 if scales == "integer" else torch.float8_e4m3fn)
        assert layer.act is not None
        linear = isinstance(layer, PackedLinear)
        # A convolution's input has one scale per sample, which needs no second level.
        assert layer.act.scale_format == (scales if linear else "float")


@pytest.mark.parametrize("scales", FORMATS)
def test_inputs_of_eight_bits_keep_their_scale_per_token(scales: str) -> None:
    for layer in packed("svdquant", 4, 8, scales=scales, iterations="0", grid="1").values():
        assert isinstance(layer.weight, UniformWeight)
        assert layer.act is not None
        assert (layer.weight.scale_format, layer.act.scale_format) == (scales, "float")


@pytest.mark.parametrize("scales", FORMATS)
def test_weights_beside_unquantized_inputs_keep_plain_scales(scales: str) -> None:
    layers = packed("svdquant", 4, 16, scales=scales, iterations="1", grid="3")
    plain = packed("svdquant", 4, 16, scales="float", iterations="1", grid="3")
    for name, layer in layers.items():
        assert isinstance(layer.weight, UniformWeight)
        assert (layer.weight.scale_format, layer.act) == ("float", None)
        assert torch.equal(layer.weight.dequantize(), plain[name].weight.dequantize())


@pytest.mark.parametrize("scales", FORMATS)
def test_shifted_inputs_have_the_format(scales: str) -> None:
    job = jobs.job("svdquant", 4, a_bits=4)
    target = next(t for t in job.targets if t.name == "down")
    job.targets = (replace(target, after="gelu"),)
    layer = jobs.run("svdquant", job, scales=scales, unsigned="true", grid="1").denoiser.get_submodule("down")
    assert isinstance(layer, PackedLinear)
    assert layer.act is not None
    assert (layer.act.scale_format, layer.act.shift) == (scales, 0.171875)


@pytest.mark.parametrize(("scales", "factor"), [("integer", 1.3), ("e8m0", 2.0)])
def test_the_output_error_is_near_that_of_float_scales(scales: str, factor: float) -> None:
    found = {}
    for each in ("float", scales):
        job = jobs.run("svdquant", jobs.job("svdquant", 4, a_bits=4), scales=each, iterations="2", grid="3")
        found[each] = jobs.output_error(job, jobs.inputs(5), jobs.Net())
    mean = {each: sum(errors.values()) / len(errors) for each, errors in found.items()}
    assert mean[scales] < factor * mean["float"]


@pytest.mark.parametrize("method", ["ptq", "gptq"])
@pytest.mark.parametrize("scales", FORMATS)
def test_plain_methods_take_it_for_groups(method: str, scales: str) -> None:
    for layer in packed(method, 3, 8, scales=scales, group="64").values():
        assert isinstance(layer.weight, UniformWeight)
        assert layer.weight.scale_format == scales


@pytest.mark.parametrize("scales", FORMATS)
def test_feedback_keeps_both_levels_and_lowers_the_error(scales: Any) -> None:
    net, x = jobs.Net(), jobs.inputs()["down"]
    sample = LayerSample(net.down, x, 256)
    rows = round_uniform(net.down.weight.detach(), 3, group=16, scale_format=scales)
    assert isinstance(rows, UniformRows)
    with torch.no_grad():
        fed = round_with_feedback(net.down.weight, rows, second_moment(sample.plain))
        assert fed.codes.multiplier is not None
        assert torch.equal(fed.codes.multiplier, rows.codes.multiplier)  # type: ignore[arg-type]
        before, after = (
            float((sample.plain @ r.values().T - sample.target).square().sum()) for r in (rows, fed)
        )
    assert after < 0.9 * before


def test_rows_are_taken_and_rounded_again_with_both_levels() -> None:
    w = jobs.Net().q.weight.detach()
    rows = round_uniform(w, 4, group=16, grid="narrow", scale_format="integer")
    some = torch.tensor([3, 1, 30])
    assert isinstance(rows, UniformRows)
    assert torch.equal(rows.take(some).values(), rows.values()[some])
    assert torch.equal(rows.take(some).pack().dequantize(), rows.values()[some])
    assert torch.equal(rows.again(rows.values()).codes.codes, rows.codes.codes)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("svdquant", {"scales": "int"}, "scales"),
        ("svdquant", {"scales": "integer", "format": "nvfp4"}, "format=int"),
        ("ptq", {"scales": "integer"}, "set group"),
        ("gptq", {"scales": "e8m0"}, "set group"),
    ],
)
def test_settings_without_a_meaning_are_refused(method: str, settings: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        registry.configure(method, settings)


def test_widths_that_a_float8_does_not_hold_are_refused() -> None:
    with pytest.raises(ValueError, match="e8m0 scales hold units up to 16, and the narrow grid of 6 bits"):
        packed("svdquant", 6, 8, scales="e8m0", grid="1")


def test_scales_of_two_levels_are_not_trained() -> None:
    rows = round_uniform(torch.randn(4, 32), 4, group=16, scale_format="integer")
    weight = rows.pack()
    assert isinstance(weight, UniformWeight)
    with pytest.raises(ValueError, match="integer scales are not learned"):
        UniformGrid(weight)


def test_the_default_is_float_and_the_format_is_part_of_the_settings() -> None:
    for method in ("svdquant", "ptq", "gptq"):
        assert asdict(registry.configure(method, {}))["scales"] == "float"
    named = [asdict(registry.configure("svdquant", m)) for m in registry.variants("svdquant", "scales")]
    assert [settings["scales"] for settings in named] == ["float", *FORMATS]


A4 = [
    ("ptq", {}),
    ("ptq", {"act": "static"}),
    ("gptq", {"act": "per_step"}),
    ("svdquant", {"unsigned": "true"}),
    ("svdquant", {"format": "nvfp4"}),
    ("svdquant", {"scales": "integer"}),
    ("svdquant", {"scales": "integer", "unsigned": "true"}),
    ("svdquant", {"scales": "e8m0", "unsigned": "true"}),
]


@pytest.mark.parametrize(("method", "settings"), A4, ids=str)
def test_what_is_called_a4_has_sixteen_codes_per_token_or_group(
    method: str, settings: dict[str, str]
) -> None:
    small = {"grid": "1", "iterations": "0"} if method == "svdquant" else {}
    job = jobs.job(method, 4, a_bits=4)
    job.targets = tuple(replace(t, after="silu" if t.name in {"down", "conv"} else "") for t in job.targets)
    jobs.run(method, job, **small, **settings)
    fresh = jobs.inputs(7, tokens=20)
    for name in jobs.NAMES:
        layer = job.denoiser.get_submodule(name)
        assert isinstance(layer, PackedLayer)
        act = layer.act
        assert act is not None
        act.step_index = StepIndex(1)
        x = fresh[name]
        if layer.smooth is not None:
            x = x / layer.smooth.float().view(1, -1, *[1] * (x.dim() - 2))
        products = act.codes(x, layer.smooth).products.to(torch.float32)
        size = act.group if act.granularity == "group" else products[0].numel()
        for sample in products.flatten(1):
            assert all(len(run.unique()) <= 16 for run in sample.split(size))
