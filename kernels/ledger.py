"""The ledger: what every packed layer holds, byte by byte.

Bytes are those of the tensors held in memory and written to the file, not bits multiplied out on paper.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from torch import nn

from harness.kernels.layers import PackedLayer

WEIGHT_PARTS = ("codes", "scales", "zeros", "codebooks", "index", "branch", "smooth", "act")
"""What counts into effective bits: all that a layer holds but its bias, which the float layer holds too."""
KEPT_BYTES = 2
"""Bytes per parameter that is not quantized: 16 bits, whatever dtype it is computed in."""
FLOAT_PART = "float"


class Target(Protocol):
    """What the ledger reads of a method's targets."""

    @property
    def name(self) -> str:
        """Module path."""
        ...

    @property
    def role(self) -> str:
        """What the layer is for."""
        ...

    @property
    def w_bits(self) -> int:
        """Weight bits asked for."""
        ...

    @property
    def a_bits(self) -> int:
        """Activation bits asked for."""
        ...


@dataclass(frozen=True)
class LedgerRow:
    """One quantized layer.

    Attributes:
        name: module path.
        role: what the layer is for.
        kind: `linear` or `conv2d`.
        shape: of the float weight.
        w_bits: weight bits asked for.
        a_bits: activation bits asked for, 16 for none.
        mean_bits: mean width of a stored code; 16 where the layer was left in floats.
        bytes: bytes held per part: `codes`, `scales`, `zeros`, `codebooks`, `index`, `branch`, `smooth`,
            `act`, `bias`; `float` for a layer left in floats, at 16 bits each.
        note: the method's remarks.
    """

    name: str
    role: str
    kind: str
    shape: tuple[int, ...]
    w_bits: int
    a_bits: int
    mean_bits: float
    bytes: dict[str, int]
    note: dict[str, Any] = field(default_factory=dict)

    @property
    def weights(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Ledger:
    """All quantized layers of a denoiser, and how many parameters were kept.

    Attributes:
        rows: in module order.
        kept_parameters: parameters outside the rows.
    """

    rows: tuple[LedgerRow, ...]
    kept_parameters: int

    @property
    def bytes_by_part(self) -> dict[str, int]:
        """Total bytes of the rows per part, in a fixed order."""
        names = (*WEIGHT_PARTS, FLOAT_PART, "bias")
        totals = {name: sum(row.bytes.get(name, 0) for row in self.rows) for name in names}
        return {name: total for name, total in totals.items() if total}

    @property
    def packed_bytes(self) -> int:
        """Bytes of the rows, biases included: what the checkpoint holds for these layers."""
        return sum(self.bytes_by_part.values())

    @property
    def weights(self) -> int:
        """Number of weights of the rows."""
        return sum(row.weights for row in self.rows)

    @property
    def effective_bits(self) -> float:
        """Stored bits per weight of the rows, biases excluded; 16 when there are no rows."""
        if not self.rows:
            return 16.0
        stored = self.packed_bytes - self.bytes_by_part.get("bias", 0)
        return stored * 8 / self.weights

    @property
    def mean_bits(self) -> float:
        """Mean width of a code over all weights of the rows; 16 when there are none."""
        if not self.rows:
            return 16.0
        return sum(row.mean_bits * row.weights for row in self.rows) / self.weights

    @property
    def weight_bytes(self) -> int:
        """Bytes of the whole denoiser: the rows as held, everything kept at 16 bits each."""
        return self.packed_bytes + KEPT_BYTES * self.kept_parameters

    @property
    def packed(self) -> bool:
        """Whether every row runs from packed storage."""
        return all(FLOAT_PART not in row.bytes for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object: rows, kept parameters, and the totals for the reader."""
        return {
            "rows": [{**asdict(row), "shape": list(row.shape)} for row in self.rows],
            "kept_parameters": self.kept_parameters,
            "totals": {
                "weights": self.weights,
                "bytes": self.bytes_by_part,
                "packed_bytes": self.packed_bytes,
                "weight_bytes": self.weight_bytes,
                "effective_bits": self.effective_bits,
                "mean_bits": self.mean_bits,
            },
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Ledger:
        """Undo `to_json`; the totals are formed anew.

        Raises:
            ValueError: the object is not a ledger.
        """
        try:
            rows = tuple(LedgerRow(**{**row, "shape": tuple(row["shape"])}) for row in data["rows"])
            return cls(rows, int(data["kept_parameters"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a ledger: {error}") from error


def build_ledger(
    denoiser: nn.Module, targets: Iterable[Target], notes: Mapping[str, Mapping[str, Any]] | None = None
) -> Ledger:
    """Read the ledger off a quantized denoiser.

    Every packed layer gets a row, and so does a target that was left in floats (a method that only
    simulates): it holds 16 bits per weight.

    Args:
        denoiser: after the method has run.
        targets: what the method was handed.
        notes: the method's remarks per layer.
    """
    asked = {target.name: target for target in targets}
    remarks = notes or {}
    rows, counted = [], 0
    for name, module in denoiser.named_modules():
        target = asked.get(name)
        if isinstance(module, PackedLayer):
            kind, shape, mean_bits = module.kind, module.shape, module.weight.mean_bits
            held = module.bytes_by_part()
        elif target is not None and isinstance(module, nn.Linear | nn.Conv2d):
            kind = "linear" if isinstance(module, nn.Linear) else "conv2d"
            shape, mean_bits = tuple(module.weight.shape), 16.0
            held = {FLOAT_PART: KEPT_BYTES * module.weight.numel()}
            if module.bias is not None:
                held["bias"] = KEPT_BYTES * module.bias.numel()
        else:
            continue
        counted += sum(parameter.numel() for parameter in module.parameters())
        role, w_bits, a_bits = (
            ("other", round(mean_bits), 16) if target is None else (target.role, target.w_bits, target.a_bits)
        )
        note = dict(remarks.get(name, {}))
        rows.append(LedgerRow(name, role, kind, shape, w_bits, a_bits, mean_bits, held, note))
    total = sum(parameter.numel() for parameter in denoiser.parameters())
    return Ledger(tuple(rows), total - counted)


def reference_ledger(denoiser: nn.Module) -> Ledger:
    """Return the ledger of an unquantized denoiser: no rows, every parameter kept at 16 bits."""
    return Ledger((), sum(parameter.numel() for parameter in denoiser.parameters()))
