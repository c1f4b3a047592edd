"""Every kernel in Triton's interpreter against the reference backend, on odd shapes and all widths."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from interpreter import needs_interpreter, normal
from seen_ops import Seen
from torch import Tensor, nn

from harness.conformance.definition import relative_error
from harness.conformance.packed import uniform_weight
from harness.kernels import coded, dispatch
from harness.kernels.activations import ActQuantizer
from harness.kernels.branch import LowRankBranch
from harness.kernels.expansion import float_weight, units_weight
from harness.kernels.layers import PackedConv2d, PackedLinear
from harness.kernels.quantizers.normal_float import quantize_normal_float
from harness.kernels.quantizers.nvfp4 import quantize_nvfp4
from harness.kernels.quantizers.residual import fit_binary_planes
from harness.kernels.weights import (
    BinaryPlanesWeight,
    NormalFloatWeight,
    Nvfp4Weight,
    PackedWeight,
    RowMixedWeight,
)

pytestmark = needs_interpreter


def mixed(w: Tensor, narrow: PackedWeight, wide: PackedWeight) -> RowMixedWeight:
    return RowMixedWeight([narrow, wide], (torch.arange(len(w)) % 3 == 0).to(torch.uint8))


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("cols", [64, 75])
def test_uniform_weights_expand_to_what_they_decode_to(bits: int, cols: int) -> None:
    w = normal(11, cols)
    for grid in ("asymmetric", "narrow", "midrise", "affine"):
        if bits == 1 and grid == "narrow":
            continue
        for group in (None, "tensor", 20):
            weight = uniform_weight(w, bits, grid, group)
            assert torch.equal(float_weight(weight, torch.float32), weight.dequantize()), (grid, group)


def test_planes_of_three_bits_end_anywhere() -> None:
    for cols in (1, 4, 5, 8, 9, 13, 121, 128):
        weight = uniform_weight(normal(5, cols), 3, "asymmetric", None)
        assert torch.equal(float_weight(weight, torch.float32), weight.dequantize()), cols


def test_other_weights_expand_to_what_they_decode_to() -> None:
    w = normal(12, 75)
    picked = torch.arange(12) % 3 == 0
    weights: list[PackedWeight] = [NormalFloatWeight.pack(quantize_normal_float(w, b), b) for b in (2, 3, 4)]
    weights += [BinaryPlanesWeight.pack(fit_binary_planes(w, planes)) for planes in (1, 2, 3)]
    weights.append(Nvfp4Weight.pack(quantize_nvfp4(w)))
    weights.append(
        mixed(
            w,
            uniform_weight(w[~picked], 2, "asymmetric", None),
            BinaryPlanesWeight.pack(fit_binary_planes(w[picked], 2)),
        )
    )
    for weight in weights:
        assert torch.equal(float_weight(weight, torch.float32), weight.dequantize()), weight.kind


@pytest.mark.parametrize(("scale_format", "dtype"), [("integer", torch.int8), ("e8m0", torch.float8_e4m3fn)])
@pytest.mark.parametrize("grid", ["asymmetric", "narrow", "midrise"])
def test_units_are_exact(scale_format: str, dtype: torch.dtype, grid: str) -> None:
    for bits in (2, 3) if grid == "midrise" and scale_format == "e8m0" else (2, 3, 4):
        weight = uniform_weight(normal(9, 150), bits, grid, 64, scale_format)
        found = units_weight(weight, dtype)
        assert found is not None
        units, scale = found()
        assert units.dtype == dtype
        assert torch.equal(units.float() * scale.float()[:, None], weight.dequantize())


def test_units_of_mixed_rows() -> None:
    w = normal(12, 70)
    picked = torch.arange(12) % 3 == 0
    weight = mixed(
        w, uniform_weight(w[~picked], 2, "asymmetric", None), uniform_weight(w[picked], 4, "narrow", None)
    )
    found = units_weight(weight, torch.int8)
    assert found is not None
    units, scale = found()
    assert torch.equal(units.float() * scale[:, None], weight.dequantize())


def test_weights_without_units_are_not_given_any() -> None:
    w = normal(6, 64)
    for weight in (
        uniform_weight(w, 4, "affine", None),
        uniform_weight(w, 4, "narrow", 32),
        uniform_weight(w, 8, "asymmetric", None),
        uniform_weight(w, 8, "midrise", None),
    ):
        assert units_weight(weight, torch.int8) is None


@pytest.mark.parametrize(
    "act",
    [
        ActQuantizer(8),
        ActQuantizer(4),
        ActQuantizer(6, "token", "dynamic", True),
        ActQuantizer(4, "group", "dynamic", True, scale_format="integer"),
        ActQuantizer(4, "group", "dynamic", True, scale_format="e8m0"),
    ],
    ids=["a8", "a4", "a6 symmetric", "a4 integer", "a4 e8m0"],
)
def test_codes_of_tokens_are_the_references(act: ActQuantizer) -> None:
    from harness.kernels.triton import ops

    x = normal(7, 150) * torch.exp(2 * normal(7, 1, seed=1))
    x[2] = 0
    x[:, 64:128] *= 0.01
    grid, largest_k = coded.kernel_grid(act)
    codes, scale, zero = ops.quantize_tokens(x, act.bits, grid, act.group, largest_k, None, None, None)
    wanted = act.codes(x)
    assert torch.equal(scale, wanted.scale[:, 0])
    ours = codes.float() - (zero[:, None] if zero.numel() else 0.0)
    theirs = wanted.products.float() + (0.0 if wanted.offset is None else wanted.offset)
    assert torch.equal(ours, theirs)


def layers(w: Tensor) -> dict[str, PackedLinear]:
    rows, cols = w.shape
    branch = LowRankBranch(0.1 * normal(12, cols, seed=2), 0.3 * normal(rows, 12, seed=3))
    smooth, bias = torch.rand(cols, generator=torch.Generator().manual_seed(4)) + 0.5, normal(rows, seed=5)
    integer = ActQuantizer(4, "group", "dynamic", True, scale_format="integer")
    power = ActQuantizer(4, "group", "dynamic", True, scale_format="e8m0")
    static = ActQuantizer(8, "tensor", "static", range=torch.tensor([-3.0, 4.0]))
    all_parts = {"bias": bias, "smooth": smooth, "branch": branch}
    return {
        "int8": PackedLinear(uniform_weight(w, 4, "narrow", 64, "integer"), act=integer, **all_parts),
        "int8 tokens": PackedLinear(
            uniform_weight(w, 3, "asymmetric", None), act=ActQuantizer(8), **all_parts
        ),
        "int8 static": PackedLinear(uniform_weight(w, 2, "asymmetric", None), act=static, bias=bias),
        "int8 sample": PackedLinear(
            uniform_weight(w, 2, "midrise", None), act=ActQuantizer(6, "tensor"), smooth=smooth
        ),
        "fp8": PackedLinear(uniform_weight(w, 4, "narrow", 64, "e8m0"), act=power, **all_parts),
        "expand": PackedLinear(uniform_weight(w, 4, "narrow", 64), act=ActQuantizer(4, "group"), **all_parts),
        "expand weight-only": PackedLinear(NormalFloatWeight.pack(quantize_normal_float(w, 4), 4), bias=bias),
    }


@pytest.mark.parametrize("name", list(layers(normal(2, 64))))
def test_linear_roads(name: str) -> None:
    layer = layers(normal(33, 192))[name]
    x = normal(2, 9, 192, seed=6)
    with torch.no_grad(), dispatch.use_backend("triton"):
        y, again = layer(x), layer(x)
    assert layer.road_taken == name.split(maxsplit=1)[0]
    assert torch.equal(y, again)
    assert relative_error(y, layer.reference(x)) < 1e-5


@pytest.mark.parametrize("name", ["int8 static", "int8 sample", "int8 groups"])
def test_the_reference_of_a_gpu_agrees_to_the_last_bit_of_float32(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without smoothing, but where ranges are given: its inverse may leave scales off by their last bit."""
    w = normal(33, 192)
    act = ActQuantizer(8, "group", "dynamic", True, scale_format="integer")
    groups = PackedLinear(uniform_weight(w, 4, "narrow", 64, "integer"), act=act, bias=normal(33, seed=5))
    layer = {**layers(w), "int8 groups": groups}[name]
    x = normal(40, 9, 192, seed=6)
    with torch.no_grad(), dispatch.use_backend("triton"):
        y = layer(x)
    assert layer.road_taken == "int8"
    with torch.no_grad(), dispatch.use_backend("reference"):
        elsewhere = layer(x)
        monkeypatch.setattr(dispatch, "_is_gpu", lambda _: True)
        exact = layer(x)
        broken = x.clone()
        broken[1, 3, 5] = float("nan")
        shown = layer(broken).isnan()
    assert torch.equal(y, exact)
    assert not torch.equal(y, elsewhere)
    assert shown[1, 3].all()
    assert not shown[[0, *range(2, 40)]].any()
    monkeypatch.setattr(dispatch, "triton_runs_on", lambda _: False)
    with torch.no_grad(), dispatch.use_backend("auto"):  # what falls back to it is no slower
        assert torch.equal(layer(x), elsewhere)
    with dispatch.use_backend("reference"):  # nor is training
        assert torch.equal(layer(x.requires_grad_()), elsewhere)


def in_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the branch be columns of the float8 product, as on a card."""
    monkeypatch.setattr(dispatch, "appends_branch", lambda *_: True)


def branches(w: Tensor) -> dict[str, tuple[Tensor, LowRankBranch]]:
    """Matrices and branches whose columns are hard to fit into float8."""
    rows, cols = w.shape
    down, up = 0.1 * normal(12, cols, seed=2), 0.3 * normal(rows, 12, seed=3)
    sizes = torch.logspace(-4, 4, rows)[:, None]
    zeros = w.clone()
    zeros[::3] = 0
    return {
        "plain": (w, LowRankBranch(down, up)),
        "large down": (w, LowRankBranch(down * 1000, up / 1000)),
        "large up": (w, LowRankBranch(down / 1000, up * 1000)),
        "rows of all sizes": (w * sizes.clamp(max=1), LowRankBranch(down, up)),
        "branch above all": (w, LowRankBranch(down, up * sizes)),
        "rows of zeros": (zeros, LowRankBranch(down, up)),
        "directions of zeros": (w, LowRankBranch(down * (torch.arange(12) % 2)[:, None], up)),
        "rank 40": (w, LowRankBranch(0.1 * normal(40, cols), 0.3 * normal(rows, 40))),
    }


@pytest.mark.parametrize("name", list(branches(normal(2, 64))))
@pytest.mark.parametrize("outliers", [False, True])
def test_a_branch_in_columns_of_float8(name: str, outliers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    w, branch = branches(normal(36, 192))[name]
    act = ActQuantizer(4, "group", "dynamic", True, scale_format="e8m0")
    smooth = torch.rand(192, generator=torch.Generator().manual_seed(4)) + 0.5
    weight = uniform_weight(w, 4, "narrow", 64, "e8m0")
    layer = PackedLinear(weight, bias=normal(36, seed=5), act=act, smooth=smooth, branch=branch)
    x = normal(7, 192, seed=6) * torch.exp(3 * normal(7, 1, seed=7))
    x[4] = 0
    if outliers:
        x[:, 5] *= 100
    in_columns(monkeypatch)
    with torch.no_grad(), dispatch.use_backend("triton"):
        y = layer(x)
    assert layer.road_taken == "fp8"
    wanted = layer.reference(x)
    # Two halves of four bits each are as fine as a factor in bfloat16. Terms may cancel, so that a token's
    # error is held against the sizes of its terms.
    projected = x / layer.smooth.float() @ branch.down.float().T
    sizes = projected.abs() @ branch.up.float().abs().T + wanted.abs()
    for ours, theirs, size in zip(y, wanted, sizes, strict=True):
        assert (ours - theirs).norm() < 1e-3 * size.norm()


@pytest.mark.parametrize("grid", ["asymmetric", "narrow", "midrise"])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_float8_units_keep_every_code(grid: str, bits: int) -> None:
    from harness.kernels.expansion import float8_codes

    if grid == "midrise" and bits == 4:
        pytest.skip("its half steps reach 15 units")
    for cols, group in ((150, 64), (72, 8)):
        weight = uniform_weight(normal(9, cols), bits, grid, group, "e8m0")
        found = float8_codes(weight)
        assert found is not None
        bias = normal(9).half()
        units, scale, copied, up = found.expand(weight, torch.float32, bias, None, None)
        assert torch.equal(units.float() * scale.view(-1, 1), weight.dequantize())
        assert torch.equal(copied, bias.float())
        assert up is None


@pytest.mark.parametrize("appended", [False, True])
def test_the_vendors_product(appended: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.kernels.triton import launch

    layer, x = layers(normal(32, 192))["fp8"], normal(9, 192, seed=6)
    monkeypatch.setattr(dispatch, "appends_branch", lambda *_: appended)
    # On a CPU torch has this product in float32, too.
    monkeypatch.setattr(launch, "has_vendor_product", lambda codes, *_: codes.dtype == torch.float8_e4m3fn)
    with torch.no_grad(), dispatch.use_backend("triton"):
        y = layer(x)
    assert relative_error(y, layer.reference(x)) < (1e-3 if appended else 1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_shows_beside_columns_of_the_branch(
    value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_columns(monkeypatch)
    test_what_is_not_finite_shows("fp8", value)


def test_a_branch_in_columns_compiled_in_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    in_columns(monkeypatch)
    test_compiled_in_one_graph("fp8")


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize(("grid", "group"), [("asymmetric", 64), ("narrow", 32), ("asymmetric", None)])
@pytest.mark.parametrize("tokens", [3, 16])
def test_few_tokens(bits: int, grid: str, group: int | None, tokens: int) -> None:
    layer = PackedLinear(uniform_weight(normal(21, 704), bits, grid, group), bias=normal(21, seed=1))
    x = normal(tokens, 704, seed=2).half()
    with torch.no_grad(), dispatch.use_backend("triton"):
        y = layer(x)
    assert layer.road_taken == "gemv"
    # A weight is rounded to 11 bits once, and so is the output.
    assert relative_error(y.float(), layer.reference(x.float())) < 4e-4


@pytest.fixture
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let 13 rows and three chunks of columns take several steps each, the last not whole."""
    from harness.kernels.triton import few

    few._launches.cache_clear()
    monkeypatch.setattr(few, "PROGRAMS", 2)
    monkeypatch.setattr(few, "MOST_CHUNKS", 2)
    monkeypatch.setattr(few, "MOST_ROWS", 4)
    monkeypatch.setattr(few, "SINGLE", {"WARPS": 2})
    yield
    few._launches.cache_clear()


@pytest.mark.parametrize(
    ("bits", "cols", "group", "rank"),
    [
        (4, 192, 64, 5), (4, 1152, 128, 40), (3, 192, 64, 0), (3, 1088, None, 40), (2, 192, 32, 5),
        (2, 1056, 32, 0), (4, 2080, 32, 0), (3, 2112, 64, 5),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("_small_steps")
def test_one_token(bits: int, cols: int, group: int | None, rank: int) -> None:
    grid = "narrow" if rank == 5 else "asymmetric"
    branch = LowRankBranch(normal(rank, cols, seed=3), normal(13, rank, seed=4)) if rank else None
    smooth = normal(cols, seed=5).abs() + 0.5 if rank == 40 else None
    weight = uniform_weight(normal(13, cols), bits, grid, group)
    layer = PackedLinear(weight, bias=normal(13, seed=1), branch=branch, smooth=smooth)
    x = (normal(1, 2, cols, seed=2) * torch.exp(2 * normal(1, 1, cols, seed=6))).half()
    with torch.no_grad(), dispatch.use_backend("triton"), Seen() as seen:
        y = layer(x[:, 1])
    assert layer.road_taken == "gemv"
    assert seen.names == ["single"]
    # The output is rounded to 11 bits; the input's integers have 16.
    assert relative_error(y.float(), layer.reference(x[:, 1].float())) < 4e-4


def test_one_token_is_off_by_no_more_than_the_last_bit_of_its_integers() -> None:
    layer, x = (
        PackedLinear(uniform_weight(normal(21, 192), 4, "narrow", 64)),
        0.1 * normal(1, 192, seed=2).half(),
    )
    x[0, [3, 100]] = torch.tensor([3e3, -7e2]).half()  # outliers, that take the others' bits
    with torch.no_grad(), dispatch.use_backend("triton"):
        y = layer(x)
    weight = layer.weight.dequantize().double()
    exact = x.double() @ weight.T
    largest = x.double().abs().view(-1, 32).amax(dim=1).repeat_interleave(32)
    bound = (weight.abs() * largest).sum(dim=1) / (2 * 32767) + exact.abs() / 2**11
    assert ((y.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_token_that_is_not_finite_shows(value: float) -> None:
    layer, x = PackedLinear(uniform_weight(normal(21, 192), 4, "narrow", 64)), torch.zeros(1, 192).half()
    with torch.no_grad(), dispatch.use_backend("triton"):
        assert torch.equal(layer(x), torch.zeros(1, 21).half())
        x[0, 180] = value
        assert not torch.isfinite(layer(x)).any()


def test_few_tokens_that_the_kernel_does_not_take() -> None:
    x = normal(2, 192, seed=2)
    half_steps = PackedLinear(uniform_weight(normal(21, 192), 4, "midrise", 64))
    uneven = PackedLinear(uniform_weight(normal(21, 192), 4, "narrow", 48))
    plain = PackedLinear(uniform_weight(normal(21, 192), 4, "narrow", 64))
    with torch.no_grad(), dispatch.use_backend("triton"):
        for layer, values in ((half_steps, x.half()), (uneven, x.half()), (plain, x)):
            y = layer(values)
            assert layer.road_taken == "expand"
            assert relative_error(y.float(), layer.reference(values.float())) < 1e-3


def test_convolutions_expand() -> None:
    conv = nn.Conv2d(12, 20, 3, padding=1, stride=2)
    branch = LowRankBranch(0.1 * normal(4, 108), 0.3 * normal(20, 4))
    layer = PackedConv2d.like(
        conv, uniform_weight(conv.weight.detach().flatten(1), 3, "asymmetric", 27),
        act=ActQuantizer(8, "tensor"), smooth=torch.rand(12) + 0.5, branch=branch,
    )  # fmt: skip
    x = normal(2, 12, 9, 9)
    with torch.no_grad(), dispatch.use_backend("triton"):
        y = layer(x)
    assert layer.road_taken == "expand"
    assert relative_error(y, layer.reference(x)) < 1e-5


@pytest.mark.parametrize("shape", [(12, 9, 9), (2, 12, 9, 9)])
def test_convolutions_with_a_branch_keep_batch_and_layout(shape: tuple[int, ...]) -> None:
    conv = nn.Conv2d(12, 20, 3, padding=1)
    branch = LowRankBranch(0.1 * normal(4, 108), 0.3 * normal(20, 4))
    layer = PackedConv2d.like(
        conv, uniform_weight(conv.weight.detach().flatten(1), 4, "asymmetric", 27), branch=branch
    )
    x = normal(*shape)
    x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
    with torch.no_grad(), dispatch.use_backend("triton"):
        y = layer(x)
    assert relative_error(y, layer.reference(x)) < 1e-5
    assert y.dim() == 3 or y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["int8", "int8 tokens", "fp8"])
def test_what_is_not_finite_shows(name: str, value: float) -> None:
    layer = layers(normal(17, 128))[name]
    x = normal(3, 128)
    x[1, 5] = value
    with torch.no_grad(), dispatch.use_backend("triton"):
        y = layer(x)
    assert not torch.isfinite(y[1]).any()
    assert torch.isfinite(y[[0, 2]]).all()


@pytest.mark.parametrize("name", ["int8", "fp8", "expand"])
def test_compiled_in_one_graph(name: str) -> None:
    layer = layers(normal(16, 128))[name]
    x = normal(5, 128)
    with torch.no_grad(), dispatch.use_backend("triton"):
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x), layer(x))


def test_training_and_the_default_on_a_cpu_take_the_reference() -> None:
    layer, x = layers(normal(16, 128))["int8"], normal(3, 128)
    assert layer.road(x) == "reference"
    with dispatch.use_backend("triton"):
        assert layer.road(x) == "int8"
        assert layer.road(x.clone().requires_grad_()) == "reference"
        assert layer.road(x[:0]) == "reference"
    with pytest.raises(ValueError, match="unknown backend 'cuda'"):
        dispatch.set_backend("cuda")  # type: ignore[arg-type]


@pytest.mark.parametrize("leading", [0, 128])
def test_activations_are_applied_while_quantizing(leading: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """GELU of the last channels, the first ones in a tensor of their own: as of one tensor that has both."""
    from harness.kernels.triton import inputs

    launches = (inputs._held_projection, inputs._quantization_of_parts)
    monkeypatch.setattr(inputs, "holds", lambda *_: True)
    monkeypatch.setattr(inputs, "HELD", {**inputs.HELD, "TOKENS": 16, "COLS": 64})
    monkeypatch.setattr(inputs, "HELD_PROGRAMS", 6)
    monkeypatch.setattr(inputs, "SCALED", {**inputs.SCALED, "COLS": 128})
    for each in launches:
        each.cache_clear()
    x = (3 * normal(37, 320)).half()[:, : 320 - leading]  # rows lie apart
    ahead = normal(37, 160, seed=1).half()[:, :leading] if leading else None
    down, smooth = (0.1 * normal(12, 320, seed=2)).half(), (normal(320, seed=3).abs() + 0.5).half()
    whole = inputs.whole_input(x, ahead, gelu=True)
    assert whole.shape == (37, 320)
    try:
        wanted = inputs.quantize_projected(whole, 4, "e8m0", down, smooth=smooth, append=True)
        monkeypatch.setattr(inputs, "whole_input", None)  # which is not needed for this
        if ahead is None:
            found = inputs.quantize_projected(x, 4, "e8m0", down, smooth=smooth, append=True, gelu=True)
        else:
            found = inputs.quantize_projected(
                x, 4, "e8m0", down, smooth=smooth, append=True, ahead=ahead, gelu=True
            )
    finally:
        for each in launches:
            each.cache_clear()
    codes, scale, gains = found
    assert torch.equal(gains, wanted[2])
    torch.testing.assert_close(scale, wanted[1], rtol=1e-3, atol=0)  # a last bit of 16 for a last bit of tanh
    assert (codes[:, :320].float() != wanted[0][:, :320].float()).float().mean() < 5e-3
    projected, other = (
        each.float().view(37, 4, 16)[:, :2].sum(1) for each in (codes[:, 320:], wanted[0][:, 320:])
    )
    assert relative_error(projected, other) < 4e-3


def test_inputs_that_kernels_do_not_read_in_parts_are_put_together() -> None:
    from harness.kernels.triton import inputs

    x, ahead = normal(3, 96).half(), normal(3, 512, seed=1).half()  # rows of multiples of 16
    assert inputs.in_parts(x, None)
    assert inputs.in_parts(x, ahead)
    assert not inputs.in_parts(x, ahead[:, :500])  # in the middle of a block
    assert not inputs.in_parts(x, ahead.float())
    assert not inputs.in_parts(x[:, 1:], ahead)
    assert not inputs.in_parts(normal(3, 97).half(), ahead)
    down, smooth = (0.1 * normal(4, 608, seed=2)).half(), (normal(608, seed=3).abs() + 0.5).half()
    found = inputs.quantize_projected(x, 4, "e8m0", down, smooth=smooth, ahead=ahead, gelu=True)
    whole = torch.cat([ahead, torch.nn.functional.gelu(x, approximate="tanh")], dim=1)
    wanted = inputs.quantize_projected(whole, 4, "e8m0", down, smooth=smooth)
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("append", [False, True])
def test_a_projection_that_holds_its_factor(append: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.kernels.triton import inputs

    launches = (inputs._held_projection, inputs._quantization_of_parts)
    monkeypatch.setattr(inputs, "holds", lambda *_: True)
    monkeypatch.setattr(inputs, "HELD", {**inputs.HELD, "TOKENS": 16, "COLS": 64})
    monkeypatch.setattr(inputs, "HELD_PROGRAMS", 6)  # of which each walks over two blocks of tokens or three
    monkeypatch.setattr(inputs, "SCALED", {**inputs.SCALED, "COLS": 128})
    x = (normal(75, 200) * torch.exp(2 * normal(75, 1, seed=1))).half()
    down, smooth = (0.1 * normal(12, 200, seed=2)).half(), (normal(200, seed=3).abs() + 0.5).half()
    act = ActQuantizer(4, "group", "dynamic", True, scale_format="e8m0")
    for each in launches:
        each.cache_clear()
    try:
        for divisor in (None, smooth):
            wanted = act.codes(x.float() if divisor is None else x.float() * (1 / divisor.float()))
            factor = down.double() if divisor is None else down.double() / divisor.double()
            codes, scale, last = inputs.quantize_projected(x, 4, "e8m0", down, smooth=divisor, append=append)
            assert torch.equal(scale[:, 0], wanted.scale[:, 0])
            ours = codes[:, :200].float() != wanted.products.float()
            assert ours.float().mean() <= (0 if divisor is None else 1e-3)
            if append:
                assert torch.equal(last[:12], 2 ** torch.floor(torch.log2(63 / down.float().abs().sum(1))))
                last = codes[:, 200:].float().view(75, 4, 16)[:, :2].sum(1) * scale / last
            assert relative_error(last[:, :12], x.double() @ factor.T) < 4e-3
    finally:
        for each in launches:
            each.cache_clear()
