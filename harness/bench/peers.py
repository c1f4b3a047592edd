"""What packed layers and models are timed beside: one small adapter per library, none of them needed.

An adapter turns a bf16 weight [n, k] and bias [n] into a function of a bf16 input [m, k]; one of a library
that quantizes whole models does so by way of a model of one layer. What is not installed, or refuses a shape,
becomes a row without a time and with the reason. Compilers keep their settings: torchao would tune every
kernel that the process compiles afterwards, whoever's (`set_inductor_config`).
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.bench.shapes import GROUP
from harness.kernels.quantizers.uniform import quantize_uniform

Layer = Callable[[Tensor], Tensor]
Builder = Callable[[Tensor, Tensor], Layer]
Quantizer = Callable[[nn.Module], None]
"""Quantizes every linear layer of a 16-bit model in place, on the device where it lies."""
_FP8_MAX, _INT8_MAX = 448.0, 127.0


@dataclass(frozen=True)
class Peer:
    """A comparator.

    Attributes:
        name: what tables call it.
        build: makes the layer; raises where it cannot.
        bits: of its weights and of its inputs.
        package: distribution whose version is recorded, None for torch itself.
        many: whether it is timed at many rows.
        few: whether it is timed at few rows.
        complete: False for a bare product that leaves out the input's quantization: a bound, no layer.
        compiled: whether a compiled twin is timed too.
        whole: quantizes a model; None for a peer that is a product alone.
    """

    name: str
    build: Builder
    bits: tuple[int, int]
    package: str | None = None
    many: bool = True
    few: bool = True
    complete: bool = True
    compiled: bool = False
    whole: Quantizer | None = None

    @property
    def installed(self) -> bool:
        """Whether its package is there."""
        return self.package is None or importlib.util.find_spec(self.package) is not None

    @property
    def label(self) -> str:
        """Widths, and the package's version where there is one."""
        widths = f"W{self.bits[0]}A{self.bits[1]}"
        if self.package is None or not self.installed:
            return widths
        return f"{widths}, {self.package} {metadata.version(self.package)}"


def library(
    name: str, whole: Quantizer, bits: tuple[int, int], package: str, *, compiled: bool = False
) -> Peer:
    """Return the peer of a library that quantizes whole models; a layer is a model of one."""

    def build(weight: Tensor, bias: Tensor) -> Layer:
        model = nn.Sequential(_linear(weight, bias))
        with torch.no_grad():
            whole(model)
        layer: Layer = model[0]
        return layer

    return Peer(name, build, bits, package, compiled=compiled, whole=whole)


def bf16(weight: Tensor, bias: Tensor) -> Layer:
    """`F.linear`, cuBLAS on CUDA: the layer that ratios refer to."""
    return _linear(weight, bias)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    linear.weight = nn.Parameter(weight.clone(), requires_grad=False)
    linear.bias = nn.Parameter(bias.clone(), requires_grad=False)
    return linear


def _rows_to(x: Tensor, largest: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return rows scaled to `largest` and rounded to `dtype`, and the float32 scales [rows, 1]."""
    values = x.to(torch.float32)
    scale = values.abs().amax(dim=1, keepdim=True).clamp_(min=1e-12) / largest
    scaled = values / scale
    return (scaled.round() if dtype is torch.int8 else scaled).to(dtype), scale


def _fused(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """Return a function compiled into few kernels on CUDA, as a serving stack would; as it is elsewhere."""
    return torch.compile(function, dynamic=False) if device.type == "cuda" else function


def scaled_mm(weight: Tensor, bias: Tensor) -> Layer:
    """fp8 rowwise by `torch._scaled_mm`, the input's quantization included."""
    held, scale = _rows_to(weight, _FP8_MAX, torch.float8_e4m3fn)
    columns, quantize = scale.T.contiguous(), _fused(_rows_to, weight.device)

    def run(x: Tensor) -> Tensor:
        rows, row_scale = quantize(x, _FP8_MAX, torch.float8_e4m3fn)
        y: Tensor = torch._scaled_mm(
            rows, held.T, row_scale, columns, bias=bias, out_dtype=torch.bfloat16, use_fast_accum=True
        )
        return y

    return run


def scaled_mm_bare(weight: Tensor, bias: Tensor) -> Layer:
    """The product of `scaled_mm` alone, on an input quantized at the first call."""
    held, scale = _rows_to(weight, _FP8_MAX, torch.float8_e4m3fn)
    columns = scale.T.contiguous()
    seen: dict[int, tuple[Tensor, Tensor]] = {}

    def run(x: Tensor) -> Tensor:
        if x.data_ptr() not in seen:
            seen[x.data_ptr()] = _rows_to(x, _FP8_MAX, torch.float8_e4m3fn)
        rows, row_scale = seen[x.data_ptr()]
        y: Tensor = torch._scaled_mm(
            rows, held.T, row_scale, columns, bias=bias, out_dtype=torch.bfloat16, use_fast_accum=True
        )
        return y

    return run


def _rescale(sums: Tensor, row_scale: Tensor, columns: Tensor, bias: Tensor) -> Tensor:
    return (sums.to(torch.float32) * row_scale * columns + bias.to(torch.float32)).to(torch.bfloat16)


def int_mm(weight: Tensor, bias: Tensor) -> Layer:
    """int8 rowwise by `torch._int_mm`, the input's quantization and the rescaling included."""
    held, scale = _rows_to(weight, _INT8_MAX, torch.int8)
    columns = scale.T.contiguous()
    quantize, rescale = _fused(_rows_to, weight.device), _fused(_rescale, weight.device)

    def run(x: Tensor) -> Tensor:
        rows, row_scale = quantize(x, _INT8_MAX, torch.int8)
        y: Tensor = rescale(torch._int_mm(rows, held.T), row_scale, columns, bias)
        return y

    return run


def torchao_fp8(model: nn.Module) -> None:
    """torchao, fp8 rowwise weights and dynamic inputs."""
    ao: Any = importlib.import_module("torchao.quantization")
    config = ao.Float8DynamicActivationFloat8WeightConfig
    ao.quantize_(model, config(granularity=ao.PerRow(), set_inductor_config=False))


def torchao_int8(model: nn.Module) -> None:
    """torchao, int8 weights per channel and dynamic inputs per token."""
    ao: Any = importlib.import_module("torchao.quantization")
    ao.quantize_(model, ao.Int8DynamicActivationInt8WeightConfig(set_inductor_config=False))


def torchao_int4(model: nn.Module) -> None:
    """torchao, int4 weight-only in the layout of the kernels that torch has itself."""
    ao: Any = importlib.import_module("torchao.quantization")
    config = ao.Int4WeightOnlyConfig
    form = "tile_packed_to_4d"
    ao.quantize_(model, config(group_size=GROUP, int4_packing_format=form, set_inductor_config=False))


def bitsandbytes_nf4(model: nn.Module) -> None:
    """bitsandbytes, NF4 with double quantization, decoded for a product in the weight's type."""
    bnb: Any = importlib.import_module("bitsandbytes")
    for name, layer in [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]:
        packed = bnb.nn.Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            compute_dtype=layer.weight.dtype,
            compress_statistics=True,
            quant_type="nf4",
            device="meta",
        )
        packed.weight = bnb.nn.Params4bit(
            layer.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4", module=packed
        ).to(layer.weight.device)  # which is when it is quantized
        packed.bias = layer.bias
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, packed)


def gemlite_weight_only(bits: int) -> Builder:
    """gemlite, weight-only in groups of 64, on the same codes as our own layer without a branch."""

    def build(weight: Tensor, bias: Tensor) -> Layer:
        helper: Any = importlib.import_module("gemlite.helper")
        codes = quantize_uniform(weight, bits, grid="asymmetric", group=GROUP)
        if codes.zero is None:
            raise RuntimeError("an asymmetric grid has zero points")
        scales = codes.scale.reshape(-1, 1).to(torch.bfloat16)
        zeros = codes.zero.reshape(-1, 1).to(torch.bfloat16)
        maker = helper.A16Wn_HQQ_INT(device=str(weight.device), dtype=torch.bfloat16, W_nbits=bits)
        layer: Layer = maker.from_weights(codes.codes, scales, zeros, bias)
        return layer

    return build


def gemlite_int8(weight: Tensor, bias: Tensor) -> Layer:
    """gemlite, int8 weights and dynamic inputs."""
    helper: Any = importlib.import_module("gemlite.helper")
    maker = helper.A8W8_int8_dynamic(device=str(weight.device), dtype=torch.bfloat16)
    layer: Layer = maker.from_linear(_linear(weight, bias), del_orig=False)
    return layer


FP8_ROWWISE, NF4 = "torchao fp8 rowwise", "bitsandbytes NF4"
BASELINE = Peer("bf16", bf16, (16, 16), compiled=True)
PEERS = (
    Peer("_scaled_mm fp8", scaled_mm, (8, 8)),
    Peer("_scaled_mm fp8, product only", scaled_mm_bare, (8, 8), complete=False),
    Peer("_int_mm int8", int_mm, (8, 8), few=False),
    library(FP8_ROWWISE, torchao_fp8, (8, 8), "torchao", compiled=True),
    library("torchao int8 dynamic", torchao_int8, (8, 8), "torchao", compiled=True),
    library("torchao int4 weight-only", torchao_int4, (4, 16), "torchao"),
    library(NF4, bitsandbytes_nf4, (4, 16), "bitsandbytes"),
    Peer("gemlite A16W4", gemlite_weight_only(4), (4, 16), "gemlite"),
    Peer("gemlite A16W2", gemlite_weight_only(2), (2, 16), "gemlite", many=False),
    Peer("gemlite A8W8", gemlite_int8, (8, 8), "gemlite", few=False),
)
WHOLE_MODEL_PEERS = tuple(peer for peer in PEERS if peer.whole is not None)


def float64_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the layer in float64."""
    return F.linear(x.to(torch.float64), weight.to(torch.float64), bias.to(torch.float64))
