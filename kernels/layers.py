"""Packed Linear and Conv2d: what a method puts in the place of a float layer.

With x1 = x / smooth, the float formula and at the same time the reference backend (`reference`) is

    y = F.linear(act(x1), weight.dequantize()) + branch(x1) + bias

in float32, returned in the dtype of x (SVDQuant's layer with every part optional). The weight is decoded in
each forward and never kept. `act` takes a shift off again after rounding, before a convolution pads with
zeros: that is SVDQuant's bias correction `bias - shift * sum(W)` and its padding with the shift, exactly, for
the weight as it is stored.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.kernels import dispatch
from harness.kernels.activations import ActQuantizer
from harness.kernels.branch import LowRankBranch
from harness.kernels.stored import Spec, StoredModule, nbytes, spec_bool, spec_dict, spec_int
from harness.kernels.weights import PackedWeight, weight_from_spec


class PackedLayer(StoredModule):
    """What both packed layers share.

    Attributes:
        kind: `linear` or `conv2d`.
        weight: the packed matrix [out, values per output channel].
        bias: float16 [out] or None.
        act: the input's quantizer, None for 16-bit activations.
        smooth: float16 [in], divides the input channels; None for no smoothing. The method has already
            multiplied the weight's (and the branch's) input channels by it.
        branch: the low-rank branch, on the smoothed, unquantized input, or None.
        road_taken: the road of the last forward, `""` before the first.
        plan: what `harness.kernels.dispatch` has worked out for it; neither copied nor stored.
    """

    kind: str
    bias: Tensor | None
    smooth: Tensor | None
    plan: dispatch.Plan | None = None

    def __init__(
        self,
        weight: PackedWeight,
        *,
        in_channels: int,
        bias: Tensor | None,
        act: ActQuantizer | None,
        smooth: Tensor | None,
        branch: LowRankBranch | None,
    ) -> None:
        super().__init__()
        self.road_taken: str = ""
        if smooth is not None and tuple(smooth.shape) != (in_channels,):
            raise ValueError(
                f"a smoothing vector of shape {tuple(smooth.shape)} for {in_channels} input channels"
            )
        if bias is not None and tuple(bias.shape) != (weight.rows,):
            raise ValueError(f"a bias of shape {tuple(bias.shape)} for {weight.rows} output channels")
        if branch is not None and (branch.up.shape[0], branch.down.shape[1]) != (weight.rows, weight.cols):
            raise ValueError(f"the branch does not belong to a matrix of {weight.rows} x {weight.cols}")
        self.weight = weight
        self.act = act
        self.branch = branch
        self.register_buffer("bias", None if bias is None else _half(bias, "bias"))
        self.register_buffer("smooth", None if smooth is None else _half(smooth, "smoothing vector"))
        self.check()

    def check(self) -> None:
        """Raise ValueError when stored values contradict each other (shapes are checked on loading)."""
        self.weight.check()
        if self.smooth is not None and not bool((self.smooth > 0).all()):
            raise ValueError("a smoothing vector must be positive in 16 bits")

    def __getstate__(self) -> dict[str, Any]:
        """Return what copies are made of: not the plan, which is of this layer's parts."""
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        state.pop("plan", None)
        return state

    def road(self, x: Tensor) -> dispatch.Road:
        """Return the road the layer takes for an input, see `harness.kernels.dispatch`."""
        return dispatch.road_of(self, x)[0]

    def take(self, x: Tensor) -> tuple[dispatch.Road, dispatch.Plan | None]:
        """Return road and plan for an input and remember the road as `road_taken` (not while compiling)."""
        road, plan = dispatch.road_of(self, x)
        if not torch.compiler.is_compiling() and self.road_taken != road:
            self.road_taken = road  # attributes of a module are slow to set
        return road, plan

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of the float weight it stands for."""

    @abstractmethod
    def spec(self) -> Spec:
        """Return the JSON object `layer_from_spec` builds an empty copy from."""

    def bytes_by_part(self) -> dict[str, int]:
        """Return the bytes held by part.

        Those of the weight, and `branch`, `smooth`, `act` (stored ranges) and `bias` where present.
        """
        extra = {
            "branch": 0 if self.branch is None else self.branch.stored_bytes(),
            "smooth": nbytes(self.smooth),
            "act": 0 if self.act is None else self.act.table_bytes(),
            "bias": nbytes(self.bias),
        }
        return {**self.weight.bytes_by_part(), **{name: size for name, size in extra.items() if size}}

    def _common_spec(self) -> Spec:
        return {
            "kind": self.kind,
            "weight": self.weight.spec(),
            "bias": self.bias is not None,
            "act": None if self.act is None else self.act.spec(),
            "smooth": self.smooth is not None,
            "branch": 0 if self.branch is None else self.branch.rank,
        }


class PackedLinear(PackedLayer):
    """A packed `nn.Linear`."""

    kind = "linear"

    def __init__(
        self,
        weight: PackedWeight,
        *,
        bias: Tensor | None = None,
        act: ActQuantizer | None = None,
        smooth: Tensor | None = None,
        branch: LowRankBranch | None = None,
    ) -> None:
        """Put the pieces together; raises ValueError when their shapes do not fit."""
        super().__init__(weight, in_channels=weight.cols, bias=bias, act=act, smooth=smooth, branch=branch)
        self.in_features, self.out_features = weight.cols, weight.rows

    @classmethod
    def like(
        cls,
        linear: nn.Linear,
        weight: PackedWeight,
        *,
        act: ActQuantizer | None = None,
        smooth: Tensor | None = None,
        branch: LowRankBranch | None = None,
    ) -> Self:
        """Build the packed layer that takes the place of `linear`, with its bias."""
        if (weight.rows, weight.cols) != (linear.out_features, linear.in_features):
            raise ValueError(f"a weight of {weight.rows} x {weight.cols} for {linear}")
        return cls(weight, bias=linear.bias, act=act, smooth=smooth, branch=branch)

    @property
    def shape(self) -> tuple[int, ...]:
        """[out_features, in_features]."""
        return self.out_features, self.in_features

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer: [..., in_features] -> [..., out_features], in the dtype of `x`."""
        road, plan = self.take(x)
        return self.reference(x) if plan is None else dispatch.linear(self, x, road, plan)

    def reference(self, x: Tensor) -> Tensor:
        """Apply the float formula; arguments and result as `forward`.

        In float32, or in float64 where `dispatch.sums_exactly` says so.
        """
        values = x.to(torch.float32)
        if self.smooth is not None:
            values = values / self.smooth.to(torch.float32)
        kind = torch.float64 if dispatch.sums_exactly(self, x) else torch.float32
        if self.act is not None and kind is torch.float64:
            rounded = self.act.codes(values, self.smooth).values(kind)
            quantized = torch.where(values.isnan(), values, rounded)  # which integers would hide
        else:
            quantized = values if self.act is None else self.act(values, self.smooth)
        bias = None if self.bias is None else self.bias.to(kind)
        y = F.linear(quantized, self.weight.dequantize().to(kind), bias)
        if self.branch is not None:
            y += self.branch(values)
        return y.to(x.dtype)

    def spec(self) -> Spec:
        """Return the parts' specs."""
        return self._common_spec()


class PackedConv2d(PackedLayer):
    """A packed `nn.Conv2d` with zero padding."""

    kind = "conv2d"

    def __init__(
        self,
        weight: PackedWeight,
        conv: nn.Conv2d,
        *,
        bias: Tensor | None = None,
        act: ActQuantizer | None = None,
        smooth: Tensor | None = None,
        branch: LowRankBranch | None = None,
    ) -> None:
        """Put the pieces together, with the geometry (not the weights) of `conv`.

        Raises:
            TypeError: padding other than zeros, or a branch beside a grouped convolution.
            ValueError: shapes that do not fit, or an activation range that is not per tensor.
        """
        if conv.padding_mode != "zeros":
            raise TypeError(f"a packed convolution pads with zeros, not {conv.padding_mode!r}")
        if branch is not None and conv.groups != 1:
            raise TypeError("a low-rank branch beside a grouped convolution is not defined")
        if act is not None and act.granularity != "tensor":
            raise ValueError(f"a convolution's input has one range per tensor, not per {act.granularity}")
        self_shape = tuple(conv.weight.shape)
        if (weight.rows, weight.cols) != (self_shape[0], conv.weight[0].numel()):
            raise ValueError(f"a weight of {weight.rows} x {weight.cols} for {conv}")
        super().__init__(
            weight, in_channels=conv.in_channels, bias=bias, act=act, smooth=smooth, branch=branch
        )
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.kernel_size, self.stride, self.dilation = conv.kernel_size, conv.stride, conv.dilation
        self.padding, self.groups = conv.padding, conv.groups
        self._shape = self_shape

    @classmethod
    def like(
        cls,
        conv: nn.Conv2d,
        weight: PackedWeight,
        *,
        act: ActQuantizer | None = None,
        smooth: Tensor | None = None,
        branch: LowRankBranch | None = None,
    ) -> Self:
        """Build the packed layer that takes the place of `conv`, with its bias; raises as the constructor."""
        return cls(weight, conv, bias=conv.bias, act=act, smooth=smooth, branch=branch)

    @property
    def shape(self) -> tuple[int, ...]:
        """[out_channels, in_channels / groups, kernel height, kernel width]."""
        return self._shape

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer: [n, in_channels, h, w] -> [n, out_channels, h', w'], in the dtype of `x`."""
        _, plan = self.take(x)
        return self.reference(x) if plan is None else dispatch.conv2d(self, x)

    def reference(self, x: Tensor) -> Tensor:
        """Apply the float formula; arguments and result as `forward`."""
        values = x.to(torch.float32)
        if self.smooth is not None:
            values = values / self.smooth.to(torch.float32).view(-1, 1, 1)
        quantized = values if self.act is None else self.act(values, self.smooth)
        bias = None if self.bias is None else self.bias.to(torch.float32)
        y = self.convolve(quantized, self.weight.dequantize(), bias)
        if self.branch is not None:
            up = self.branch.up.to(torch.float32)[:, :, None, None]
            y += F.conv2d(self.convolve(values, self.branch.down.to(torch.float32), None), up)
        return y.to(x.dtype)

    def convolve(self, x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve with a kernel given as a matrix [rows, in / groups * kh * kw], with this geometry."""
        kernel = matrix.view(-1, *self._shape[1:])
        return F.conv2d(x, kernel, bias, self.stride, self.padding, self.dilation, self.groups)

    def spec(self) -> Spec:
        """Return the parts' specs and the geometry."""
        return {**self._common_spec(), "geometry": geometry(self)}


def geometry(conv: nn.Conv2d | PackedConv2d) -> Spec:
    """Return what a convolution is besides its values, in JSON types."""
    padding = conv.padding if isinstance(conv.padding, str) else list(conv.padding)
    return {
        "kernel_size": list(conv.kernel_size),
        "stride": list(conv.stride),
        "padding": padding,
        "dilation": list(conv.dilation),
        "groups": conv.groups,
    }


def layer_from_spec(layer: nn.Module, spec: Spec) -> PackedLinear | PackedConv2d:
    """Build the empty packed layer that `spec` puts in the place of the float `layer`.

    Its state can then be loaded.

    Raises:
        ValueError: an unknown kind, a wrong spec, or one that does not belong to this layer.
    """
    kind = spec.get("kind")
    classes: dict[str, type[nn.Module]] = {"linear": nn.Linear, "conv2d": nn.Conv2d}
    if not isinstance(kind, str) or kind not in classes:
        raise ValueError(f"unknown layer kind {kind!r}; valid: {', '.join(classes)}")
    if not isinstance(layer, nn.Linear | nn.Conv2d) or not isinstance(layer, classes[kind]):
        raise ValueError(f"a packed {kind} for a {type(layer).__name__}")
    weight_spec = spec_dict(spec.get("weight"), "weight")
    rows, cols = layer.weight.shape[0], layer.weight[0].numel()
    if (weight_spec.get("rows"), weight_spec.get("cols")) != (rows, cols):
        raise ValueError(f"the packed weight is not {rows} x {cols}")
    if spec_bool(spec, "bias") != (layer.bias is not None):
        raise ValueError("the packed layer and the float layer differ in having a bias")
    weight = weight_from_spec(weight_spec)
    act = None if spec.get("act") is None else ActQuantizer.from_spec(spec_dict(spec["act"], "act"))
    channels = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    smooth = torch.ones(channels) if spec_bool(spec, "smooth") else None
    rank = spec_int(spec, "branch", 0, max(rows, cols))
    branch = LowRankBranch.empty(rank, cols, rows) if rank else None
    if isinstance(layer, nn.Linear):
        return PackedLinear.like(layer, weight, act=act, smooth=smooth, branch=branch)
    if spec.get("geometry") != geometry(layer):
        raise ValueError("the packed convolution has another geometry than the float one")
    try:
        return PackedConv2d.like(layer, weight, act=act, smooth=smooth, branch=branch)
    except TypeError as error:
        raise ValueError(str(error)) from error


def _half(values: Tensor, what: str) -> Tensor:
    half = values.detach().to(torch.float16).clone()
    if bool((torch.isfinite(values) & ~torch.isfinite(half)).any()):
        raise ValueError(f"the {what} is too large for 16 bits")
    return half
