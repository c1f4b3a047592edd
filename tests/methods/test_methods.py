"""The built-in methods on small layers: what they promise, and that nothing breaks them."""

from __future__ import annotations

import math

import layer_jobs as jobs
import pytest
import torch

from harness.kernels.layers import PackedConv2d, PackedLinear
from harness.kernels.weights import BinaryPlanesWeight, NormalFloatWeight, RowMixedWeight, UniformWeight
from harness.methods import registry

METHODS = registry.BUILT_IN
BITS = (2, 3, 4)


def mean_error(method: str, bits: int, seed: int = 0, **settings: str) -> float:
    done = jobs.run(method, jobs.job(method, bits, seed=seed), **settings)
    errors = jobs.output_error(done, jobs.inputs(seed), jobs.Net(seed))
    return math.exp(sum(math.log(e) for e in errors.values()) / len(errors))


@pytest.mark.parametrize("method", METHODS)
def test_every_target_is_replaced_and_error_falls_as_bits_rise(method: str) -> None:
    errors = []
    for bits in (2, 3, 4, 6):
        done = jobs.run(method, jobs.job(method, bits))
        for name in jobs.NAMES:
            assert isinstance(done.denoiser.get_submodule(name), PackedLinear | PackedConv2d)
        errors.append(jobs.output_error(done, jobs.inputs(), jobs.Net()))
    for name in jobs.NAMES:
        values = [e[name] for e in errors]
        assert values == sorted(values, reverse=True), (name, values)
        assert values[2] < 0.05


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bits", BITS)
def test_dead_and_constant_channels_survive(method: str, bits: int) -> None:
    net, x = jobs.Net(), jobs.inputs()
    with torch.no_grad():
        for name in jobs.NAMES:
            weight = net.get_submodule(name).get_parameter("weight")
            weight[0] = 0
            weight[1] = 0.25
            weight[:, 2] = 0
            x[name] = x[name].clone()
            x[name][:, 3] = 0
        x["k"] = x["q"]
    done = jobs.run(method, jobs.job(method, bits, net=net, x=x))
    with torch.no_grad():
        for name in jobs.NAMES:
            out = done.denoiser.get_submodule(name)(x[name])
            assert bool(torch.isfinite(out).all()), name
            for buffer in done.denoiser.get_submodule(name).buffers():
                assert not torch.is_floating_point(buffer) or bool(torch.isfinite(buffer).all())


@pytest.mark.parametrize("method", METHODS)
def test_inputs_of_nothing_but_zeros_survive(method: str) -> None:
    x = {name: torch.zeros_like(value) for name, value in jobs.inputs().items()}
    done = jobs.run(method, jobs.job(method, 2, x=x))
    for name, value in jobs.inputs().items():
        assert bool(torch.isfinite(done.denoiser.get_submodule(name)(value)).all())


@pytest.mark.parametrize("method", METHODS)
def test_the_same_job_gives_the_same_bytes(method: str) -> None:
    first, second = (jobs.run(method, jobs.job(method, 3)).denoiser.state_dict() for _ in range(2))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bits", BITS)
def test_code_widths_are_exactly_the_bits_asked_for(method: str, bits: int) -> None:
    done = jobs.run(method, jobs.job(method, bits))
    for name in jobs.NAMES:
        assert done.denoiser.get_submodule(name).weight.mean_bits == pytest.approx(bits, abs=1e-12)


@pytest.mark.parametrize("method", ["svdquant", "mpqdm", "mpqdmv2"])
@pytest.mark.parametrize("bits", BITS)
def test_no_method_is_worse_than_rounding_to_nearest(method: str, bits: int) -> None:
    for seed in (0, 1):
        assert mean_error(method, bits, seed) <= mean_error("ptq", bits, seed) * 1.005


@pytest.mark.parametrize("bits", BITS)
def test_mse_ranges_beat_minmax(bits: int) -> None:
    assert mean_error("ptq", bits) < mean_error("ptq", bits, range="minmax")
    assert mean_error("ptq", bits, group="64") < mean_error("ptq", bits)


@pytest.mark.parametrize("method", ["svdquant", "mpqdm", "mpqdmv2"])
def test_layers_of_8_bits_are_rounded_plainly(method: str) -> None:
    done, plain = (jobs.run(m, jobs.job(m, 8)) for m in (method, "ptq"))
    assert done.notes["q"] == {"plain": True}
    for name, tensor in done.denoiser.state_dict().items():
        assert torch.equal(tensor, plain.denoiser.state_dict()[name])


@pytest.mark.parametrize("method", METHODS)
def test_16_bit_activations_have_no_quantizer(method: str) -> None:
    done = jobs.run(method, jobs.job(method, 4, a_bits=16))
    assert all(done.denoiser.get_submodule(name).act is None for name in jobs.NAMES)


def test_ptq_is_round_to_nearest_on_each_channels_own_grid() -> None:
    done = jobs.run("ptq", jobs.job("ptq", 3), range="minmax")
    weight = jobs.Net().q.weight.detach().double()
    lo, hi = weight.amin(1, keepdim=True).clamp(max=0), weight.amax(1, keepdim=True).clamp(min=0)
    step = ((hi - lo) / 7).half().double()
    zero = (-lo / step).round()
    expected = ((weight / step + zero).round().clamp(0, 7) - zero) * step
    packed = done.denoiser.get_submodule("q")
    torch.testing.assert_close(packed.weight.dequantize().double(), expected, rtol=1e-5, atol=1e-7)
    assert packed.act.granularity == "token"
    assert done.denoiser.get_submodule("conv").act.granularity == "tensor"


@pytest.mark.parametrize("mode", ["static", "per_step"])
def test_calibrated_ranges_come_from_the_stream(mode: str) -> None:
    work = jobs.job("ptq", 4)
    recorded = work.stream().step_range("q")
    jobs.run("ptq", work, act=mode)
    act = work.denoiser.get_submodule("q").act
    assert (act.mode, act.granularity) == (mode, "tensor")
    if mode == "static":
        recorded = torch.stack([recorded[:, 0].min(), recorded[:, 1].max()])[None]
    torch.testing.assert_close(act.range.float(), recorded, rtol=1e-3, atol=0)


def test_smoothed_static_ranges_hold_the_smoothed_samples() -> None:
    x = jobs.inputs()
    done = jobs.run("mpqdm", jobs.job("mpqdm", 4), prescale="always", act="static")
    for name in ("q", "conv"):
        layer = done.denoiser.get_submodule(name)
        smooth = layer.smooth.float().view(1, -1, *[1] * (x[name].dim() - 2))
        smoothed = x[name] / smooth
        assert float(layer.act.range[0, 0]) == pytest.approx(float(smoothed.min()), rel=2e-3)
        assert float(layer.act.range[0, 1]) == pytest.approx(float(smoothed.max()), rel=2e-3)


def test_static_ranges_without_calibration_are_refused() -> None:
    work = jobs.job("ptq", 4)
    work.calibration = None
    with pytest.raises(ValueError, match="needs calibration"):
        jobs.run("ptq", work, act="static")
    jobs.run("ptq", work)


@pytest.mark.parametrize("bits", BITS)
def test_normal_float_is_weight_only_and_names_its_code_book(bits: int) -> None:
    done = jobs.run("nf4", jobs.job("nf4", bits))
    layer = done.denoiser.get_submodule("conv")
    assert isinstance(layer.weight, NormalFloatWeight)
    assert layer.act is None
    assert done.notes["conv"] == {"codebook": f"nf{bits}"}
    flat = jobs.Net().conv.weight.detach().flatten()
    peaks = torch.nn.functional.pad(flat, (0, -len(flat) % 64)).view(-1, 64).abs().amax(1)
    torch.testing.assert_close(layer.weight.absmax, peaks)


def test_svdquant_smooths_layers_of_one_input_together() -> None:
    done = jobs.run("svdquant", jobs.job("svdquant", 4), grid="5")
    q, k = done.denoiser.get_submodule("q"), done.denoiser.get_submodule("k")
    assert q.smooth is not None
    assert torch.equal(q.smooth, k.smooth)
    assert done.notes["q"]["alpha"] == done.notes["k"]["alpha"]


def test_svdquant_parts() -> None:
    done = jobs.run("svdquant", jobs.job("svdquant", 4, a_bits=4))
    q = done.denoiser.get_submodule("q")
    assert isinstance(q.weight, UniformWeight)
    assert (q.weight.grid, q.weight.group, q.weight.bits) == ("narrow", 64, 4)
    assert (q.act.granularity, q.act.symmetric, q.act.group) == ("group", True, 64)
    assert q.branch.rank == 4
    assert q.branch.down.dtype == torch.float16
    wide = jobs.run("svdquant", jobs.job("svdquant", 4), rank="8", group="16").denoiser.get_submodule("q")
    assert wide.branch.rank == 8
    assert wide.weight.scale.shape == (40, 4)
    bare = jobs.run("svdquant", jobs.job("svdquant", 4), rank="0", grid="1").denoiser.get_submodule("q")
    assert bare.branch is None
    assert bare.smooth is None


def test_svdquant_residual_and_branch_restore_the_smoothed_weight() -> None:
    done = jobs.run("svdquant", jobs.job("svdquant", 6))
    for name in jobs.NAMES:
        layer = done.denoiser.get_submodule(name)
        weight = jobs.Net().get_submodule(name).weight.detach().flatten(1)
        taps = weight.shape[1] // jobs.inputs()[name].shape[1]
        scale = torch.ones(1) if layer.smooth is None else layer.smooth.float().repeat_interleave(taps)
        restored = (layer.weight.dequantize() + layer.branch.product()) / scale
        assert float((restored - weight).square().sum() / weight.square().sum()) < 5e-3


def test_refinement_and_smoothing_never_hurt_the_calibration_objective() -> None:
    """With the search on all channels (layers below its limit) more candidates can only lower the error."""

    def errors(**settings: str) -> dict[str, float]:
        done = jobs.run("svdquant", jobs.job("svdquant", 3), **settings)
        return jobs.output_error(done, jobs.inputs(), jobs.Net())

    once, refined = errors(iterations="0", grid="1"), errors(iterations="4", grid="1")
    for name in ("q", "k", "down"):
        assert refined[name] <= once[name] * (1 + 1e-6)


@pytest.mark.parametrize("bits", BITS)
def test_mpqdm_swaps_are_balanced_and_noted(bits: int) -> None:
    done = jobs.run("mpqdm", jobs.job("mpqdm", bits))
    for name in jobs.NAMES:
        layer, note = done.denoiser.get_submodule(name), done.notes[name]
        assert 0 <= note["gain"] < 1
        rows = layer.weight.rows
        counts = dict.fromkeys((bits - 1, bits, bits + 1), 0)
        parts = layer.weight.parts if isinstance(layer.weight, RowMixedWeight) else [layer.weight]
        for part in parts:
            counts[int(part.mean_bits)] += part.rows
        assert counts[bits - 1] == counts[bits + 1] == round(note["swap"] * rows)
        assert sum(counts.values()) == rows


@pytest.mark.parametrize("method", ["mpqdm", "mpqdmv2"])
@pytest.mark.parametrize("bits", BITS)
def test_the_chosen_split_is_never_worse_than_no_swap(method: str, bits: int) -> None:
    """On the samples the search saw: for linear layers those are all of the calibration tokens."""
    settings = {"rank": "0"} if method == "mpqdmv2" else {"prescale": "never"}
    searched = {**settings, "swap": "search"}
    x = jobs.inputs()
    swapped = jobs.output_error(jobs.run(method, jobs.job(method, bits), **searched), x, jobs.Net())
    plain = jobs.output_error(jobs.run(method, jobs.job(method, bits), swap="off", **settings), x, jobs.Net())
    for name in ("q", "k", "down"):
        assert swapped[name] <= plain[name] * (1 + 1e-5)
    assert any(swapped[name] < plain[name] for name in jobs.NAMES)


@pytest.mark.parametrize("bits", BITS)
def test_the_prescale_is_kept_only_where_it_helps(bits: int) -> None:
    x = jobs.inputs()
    found, never = (
        jobs.output_error(jobs.run("mpqdm", jobs.job("mpqdm", bits), prescale=p, swap="off"), x, jobs.Net())
        for p in ("search", "never")
    )
    for name in ("q", "k", "down"):
        assert found[name] <= never[name] * (1 + 1e-5)


def test_channels_of_one_bit_keep_both_signs() -> None:
    work = jobs.job("mpqdm", 2)
    jobs.run("mpqdm", work, prescale="never")
    one_bit = [
        (name, index)
        for name in jobs.NAMES
        if isinstance(mixed := work.denoiser.get_submodule(name).weight, RowMixedWeight)
        for index, part in enumerate(mixed.parts)
        if part.mean_bits == 1
    ]
    assert one_bit
    for name, index in one_bit:
        mixed = work.denoiser.get_submodule(name).weight
        assert isinstance(mixed.parts[index], BinaryPlanesWeight)
        rows = jobs.Net().get_submodule(name).weight.detach().flatten(1)[mixed.row_part == index]
        held = mixed.parts[index].dequantize()
        torch.testing.assert_close(
            held.abs(), rows.abs().mean(1, keepdim=True).expand_as(rows), rtol=1e-3, atol=0
        )
        assert torch.equal(held > 0, rows >= 0)


def test_mpqdmv2_uses_both_kinds_of_channel_and_a_branch() -> None:
    done = jobs.run("mpqdmv2", jobs.job("mpqdmv2", 3))
    kinds = {
        type(part)
        for name in jobs.NAMES
        for part in (getattr(done.denoiser.get_submodule(name).weight, "parts", None) or [None])
    }
    assert {UniformWeight, BinaryPlanesWeight} <= kinds
    assert all(done.notes[name]["rank"] == 4 for name in ("q", "k", "down", "conv"))
    bare = jobs.run("mpqdmv2", jobs.job("mpqdmv2", 3), rank="0", planes="false", swap="off")
    for name in jobs.NAMES:
        layer = bare.denoiser.get_submodule(name)
        assert layer.branch is None
        assert isinstance(layer.weight, UniformWeight)


def test_an_activation_aware_branch_beats_a_plain_one() -> None:
    full, plain, none = (
        mean_error("mpqdmv2", 2, weighting=w, rank=r)
        for w, r in (("full", "none"), ("none", "none"), ("none", "0"))
    )
    assert full < plain < none


def test_grouped_convolutions_are_refused_by_methods_that_need_an_input_matrix() -> None:
    work = jobs.job("mpqdm", 4)
    grouped = torch.nn.Conv2d(12, 12, 3, padding=1, groups=12)
    work.replace("conv", grouped)
    with pytest.raises(TypeError, match="12 groups"):
        jobs.run("mpqdm", work)


def test_every_setting_has_a_default_of_its_type() -> None:
    for name in METHODS:
        assert registry.configure(name, {}) == registry.get(name).config()
