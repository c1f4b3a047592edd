"""Which road a packed layer takes on which device, and the roads that are not the reference.

| road | what runs | layers |
|---|---|---|
| `reference` | the float formula in torch (`harness.kernels.layers`) | all; the definition |
| `int8` | codes and units as int8, one integer GEMM, scales and branch in its epilogue | linear; a scale \
per row, or groups with integer scales |
| `fp8` | codes and units as float8 e4m3, exact for power-of-two scales, one product of the vendor's \
library where torch has it (else this package's), the branch in it or after it | linear; groups with `e8m0` \
scales |
| `gemv` | codes decoded where they are multiplied | linear, weight-only, few tokens |
| `expand` | the weight expanded to the type of x, then the vendor's GEMM or convolution | all others |

No road quantizes a weight anew: all read the packed codes and scales the layer holds, and round activations
to the codes the reference rounds to, but for ties decided by the last bit of a division. `int8` adds the
products of codes exactly; float8 sums in the tensor cores keep about 14 bits. 16-bit inputs of one token are
held as integers of 16 bits, relative to the largest of 32 columns (`harness.kernels.triton.single`).
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.kernels import coded
from harness.kernels.activations import ActQuantizer
from harness.kernels.branch import LowRankBranch
from harness.kernels.expansion import (
    FewTokenWeight,
    Float8Codes,
    expandable,
    few_token_weight,
    float8_codes,
    float_weight,
    units_weight,
)
from harness.kernels.stored import held
from harness.kernels.weights import PackedWeight, UniformWeight

if TYPE_CHECKING:
    from harness.kernels.layers import PackedConv2d, PackedLayer, PackedLinear

Backend = Literal["auto", "reference", "triton"]
Road = Literal["reference", "int8", "fp8", "gemv", "expand"]
FEW_TOKENS = 16
"""Tokens up to which decoding in the multiplication was measured faster than expanding first."""
MOST_APPENDED = 64
"""Largest rank of a branch that becomes columns of a float8 product, four for each direction."""
OLDEST = (8, 0)
OLDEST_FP8 = (8, 9)

HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

_chosen: dict[str, Backend] = {"backend": "auto"}


def set_backend(backend: Backend) -> None:
    """Let every packed layer of the process run on `backend`: `auto` is Triton on a device that has it."""
    if backend not in get_args(Backend):
        raise ValueError(f"unknown backend {backend!r}; valid: {', '.join(get_args(Backend))}")
    _chosen["backend"] = backend


@contextmanager
def use_backend(backend: Backend) -> Iterator[None]:
    """Run the block with `set_backend(backend)`."""
    before = _chosen["backend"]
    set_backend(backend)
    try:
        yield
    finally:
        set_backend(before)


def triton_runs_on(device: torch.device) -> bool:
    """Whether the kernels can run on a device (on a CPU: in Triton's interpreter)."""
    if not HAS_TRITON:
        return False
    return _at_least(device.index or 0, *OLDEST) if device.type == "cuda" else INTERPRETED


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _at_least(index: int, major: int, minor: int) -> bool:
    """Whether a CUDA device has a compute capability; torch 2.11 compiles no comparison of its tuple."""
    return torch.version.cuda is not None and torch.cuda.get_device_capability(index) >= (major, minor)


def road_of(layer: PackedLayer, x: Tensor) -> tuple[Road, Plan | None]:
    """Return the road a layer takes for an input, and its plan, None for the reference.

    Training always takes the reference: the kernels have no gradients.
    """
    backend = _chosen["backend"]
    if backend == "reference" or (backend == "auto" and x.device.type != "cuda") or not x.numel():
        return "reference", None
    if torch.is_grad_enabled() and x.requires_grad:
        return "reference", None
    plan = plan_of(layer, x)
    if plan.road == "reference":
        return "reference", None
    few = plan.few is not None and x.numel() // x.shape[-1] <= FEW_TOKENS
    return "gemv" if few else plan.road, plan


def sums_exactly(layer: PackedLinear, x: Tensor) -> bool:
    """Whether the reference multiplies in float64, as good as exactly, what `int8` sums exactly.

    On a GPU, where the reference is asked for by name, without a branch, which both sum in float32. Outputs
    of float32 then agree with those of that road to the last bit, unless smoothing makes scales differ in
    theirs, and what follows does not take another turn. Elsewhere the reference is what runs where nothing
    else does, and shall be neither slower nor larger.
    """
    if _chosen["backend"] != "reference" or not _is_gpu(x) or not x.numel():
        return False
    if layer.act is None or layer.branch is not None or (torch.is_grad_enabled() and x.requires_grad):
        return False
    return coded.code_type(layer.act) == torch.int8 and units_weight(layer.weight, torch.int8) is not None


def _is_gpu(x: Tensor) -> bool:
    return x.is_cuda


class Plan(NamedTuple):
    """What a layer does with every input of one type on one device.

    It holds modules but none of their tensors, which may be moved or loaded anew in the meantime: those are
    looked up in every forward. Modules are replaced, not changed.

    Attributes:
        weight: what it was made for; as are the next four.
        act: see above.
        branch: see above.
        dtype: of the input.
        device: of the input.
        road: the road of many tokens.
        few: how few tokens are multiplied, where they take a road of their own.
        kind: what codes are held in, on the roads `int8` and `fp8`.
        float8: how the weight becomes float8 in one go, where it does.
        grid: the kernel's name of the grid of `act`.
        largest_k: the largest multiplier of its groups.
        append: see `appends_branch`.
    """

    weight: PackedWeight
    act: ActQuantizer | None
    branch: LowRankBranch | None
    dtype: torch.dtype
    device: torch.device
    road: Road
    few: FewTokenWeight | None = None
    kind: torch.dtype = torch.int8
    float8: Float8Codes | None = None
    grid: str = ""
    largest_k: int = 1
    append: bool = False

    def is_for(self, layer: PackedLayer, x: Tensor) -> bool:
        """Whether it was made for a layer as it is now, and for such an input."""
        parts = layer._modules  # its attributes, without what it takes torch to get at them
        same = self.weight is parts.get("weight") and self.act is parts.get("act")
        same = same and self.branch is parts.get("branch")
        return same and self.dtype is x.dtype and self.device == x.device


def plan_of(layer: PackedLayer, x: Tensor) -> Plan:
    """Return what a layer does with such inputs: once worked out, the layer remembers it.

    Not while compiling: there it is worked out once anyway, and what a layer remembers would be one more
    thing in which layers differ that could share a graph.
    """
    if torch.compiler.is_compiling():
        return _planned(layer, x)
    plan = layer.plan
    if plan is None or not plan.is_for(layer, x):
        plan = layer.plan = _planned(layer, x)
    return plan


def _planned(layer: PackedLayer, x: Tensor) -> Plan:
    weight, act = layer.weight, layer.act
    made_for = (weight, act, layer.branch, x.dtype, x.device)
    if not triton_runs_on(x.device) or not expandable(weight):
        return Plan(*made_for, road="reference")
    if act is None or layer.kind != "linear":
        halves = layer.kind == "linear" and x.dtype in {torch.bfloat16, torch.float16}
        return Plan(*made_for, road="expand", few=few_token_weight(weight) if halves else None)
    kind = coded.code_type(act)
    if kind is None or units_weight(weight, kind) is None:
        return Plan(*made_for, road="expand")
    float8 = kind == torch.float8_e4m3fn
    if float8 and not _has_fp8(x.device):
        return Plan(*made_for, road="expand")
    whole = float8_codes(weight) if float8 else None
    grid, largest_k = coded.kernel_grid(act)
    append = whole is not None and appends_branch(layer, x)
    return Plan(*made_for, "fp8" if float8 else "int8", None, kind, whole, grid, largest_k, append)


def linear(layer: PackedLinear, x: Tensor, road: Road, plan: Plan) -> Tensor:
    """Run a linear layer on a road other than `reference`: [..., in] -> [..., out] in the dtype of `x`.

    Raises:
        ValueError: `x` has another number of channels, which kernels would not see.
    """
    tokens = _tokens(layer, x)
    if road in {"int8", "fp8"}:
        y = coded.product(layer, plan, tokens, x)
    elif road == "gemv":
        y = _few_tokens(layer, plan, tokens)
    else:
        y = _expanded_linear(layer, x)
    return y if x.dim() == 2 else y.view(*x.shape[:-1], layer.out_features)


def linear_pieces(
    layer: PackedLinear, x: Tensor, road: Road, plan: Plan, sizes: list[int]
) -> tuple[Tensor, ...]:
    """As `linear`, the output channels in tensors that are contiguous each: [..., size] for each size.

    Codes are multiplied with the rows of one piece at a time; other roads take the output apart.

    Raises:
        ValueError: see `linear`.
    """
    if road not in {"int8", "fp8"}:
        return contiguous_pieces(linear(layer, x, road, plan), sizes)
    from harness.kernels.triton import ops

    factors = coded.factors(layer, plan, _tokens(layer, x), x)
    rows = x.shape[:-1]
    return tuple(y.view(*rows, y.shape[1]) for y in ops.scaled_pieces(*factors, sizes))


def linear_after_gelu(layer: PackedLinear, x: Tensor, ahead: Tensor | None, road: Road, plan: Plan) -> Tensor:
    """As `linear`, of what an activation makes of x, behind channels that it is not applied to.

    Args:
        layer: takes all the channels.
        x: [..., channels], before GELU by its approximation with tanh.
        ahead: [..., channels], as they are.
        road: not `reference`.
        plan: of the layer.

    Raises:
        ValueError: see `linear`.
    """
    from harness.kernels.triton import inputs, ops

    projected = road in {"int8", "fp8"} and plan.act is not None and plan.act.scale_format != "float"
    if not projected or plan.branch is None:
        return linear(layer, inputs.whole_input(x, ahead, gelu=True), road, plan)
    others = None if ahead is None else _rows(ahead)
    tokens = _tokens(layer, x, 0 if others is None else others.shape[1])
    y: Tensor = ops.scaled_linear(*coded.factors(layer, plan, tokens, x, others, gelu=True))
    return y if x.dim() == 2 else y.view(*x.shape[:-1], layer.out_features)


def contiguous_pieces(y: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
    """Take the last axis apart: copies but for a single row."""
    return tuple(piece.contiguous() for piece in torch.split(y, sizes, dim=-1))


def _tokens(layer: PackedLinear, x: Tensor, ahead: int = 0) -> Tensor:
    """Return an input, but for channels ahead of it, as [tokens, in] whose rows lie in one piece each."""
    if ahead + x.shape[-1] != layer.in_features:
        raise ValueError(f"{ahead + x.shape[-1]} channels for a layer of {layer.in_features}")
    return _rows(x)


def _rows(x: Tensor) -> Tensor:
    tokens = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    return tokens if tokens.stride(-1) == 1 else tokens.contiguous()


def conv2d(layer: PackedConv2d, x: Tensor) -> Tensor:
    """Run a convolution on the `expand` road: [n, in, h, w] -> [n, out, h', w'] in the dtype of `x`."""
    values, quantized = _inputs(layer, x, layer.smooth.view(-1, 1, 1) if layer.smooth is not None else None)
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    y = layer.convolve(quantized, float_weight(layer.weight, x.dtype), bias)
    if layer.branch is not None:
        down = layer.convolve(values, layer.branch.down.to(x.dtype), None)
        up = layer.branch.up.to(x.dtype)
        if y.dim() == 4 and y.is_contiguous():  # rounds the sum alone
            y = torch.baddbmm(y.flatten(2), up.expand(len(y), -1, -1), down.flatten(2)).view_as(y)
        else:
            y = y + F.conv2d(down, up[:, :, None, None])
    return y


def appends_branch(layer: PackedLayer, tokens: Tensor) -> bool:
    """Whether the branch becomes further columns of a float8 product, for the vendor's product to do.

    That costs the product 4 * rank columns, less than reading and writing the output once more to add it.
    """
    if layer.branch is None or tokens.dtype != torch.bfloat16 or tokens.device.type != "cuda":
        return False
    return layer.branch.rank <= MOST_APPENDED


def _few_tokens(layer: PackedLinear, plan: Plan, tokens: Tensor) -> Tensor:
    branch, (bias, smooth) = plan.branch, held(layer, "bias", "smooth")
    assert plan.few is not None
    assert isinstance(plan.weight, UniformWeight)
    if len(tokens) == 1 and plan.few.single and (branch is None or branch.rank <= MOST_APPENDED):
        factors = (None, None) if branch is None else held(branch, "down", "up")
        return plan.few.multiply_one(tokens, plan.weight, bias, smooth, *factors)
    values = tokens if smooth is None else tokens / smooth.to(tokens.dtype)
    y = plan.few.multiply(values.contiguous(), plan.weight, bias)
    return _with_branch(layer, values, y)


def _expanded_linear(layer: PackedLinear, x: Tensor) -> Tensor:
    values, quantized = _inputs(layer, x, layer.smooth)
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    y = F.linear(quantized, float_weight(layer.weight, x.dtype), bias)
    return _with_branch(layer, values.reshape(-1, layer.in_features), y.reshape(-1, layer.out_features))


def _with_branch(layer: PackedLinear, tokens: Tensor, y: Tensor) -> Tensor:
    """Add the branch of tokens [tokens, in] to their output [tokens, out], rounding the sum alone."""
    if layer.branch is None:
        return y
    down, up = layer.branch.down.to(y.dtype), layer.branch.up.to(y.dtype)
    return torch.addmm(y, F.linear(tokens, down), up.t())


def _inputs(layer: PackedLayer, x: Tensor, smooth: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the smoothed input and what the activation quantizer makes of it, in the dtype of `x`."""
    if smooth is None and layer.act is None:
        return x, x
    values = x.to(torch.float32)
    if smooth is not None:
        values = values / smooth.to(torch.float32)
    quantized = values if layer.act is None else layer.act(values, layer.smooth)
    return values.to(x.dtype), quantized.to(x.dtype)


def _has_fp8(device: torch.device) -> bool:
    return device.type != "cuda" or _at_least(device.index or 0, *OLDEST_FP8)
