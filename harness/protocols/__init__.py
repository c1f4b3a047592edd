"""Protocols: how prompts are chosen and images made and judged, as data, named and hashed.

Numbers of different protocol hashes never share a column. The number of prompts is not part of a protocol.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from harness.canonical import digest_json
from harness.errors import UserError, unknown

DEFAULT_SEED = 0


@dataclass(frozen=True)
class Protocol:
    """One way of making and judging images.

    Attributes:
        name: the name on the command line.
        dataset: the prompt set used when `--dataset` is not given.
        summary: one line; not hashed.
        seed: the seed it fixes, or None when `--seed` sets it.
        block: prompts per block: one batch and the unit of resuming.
        dtype: of the pipeline.
        steps: sampling steps, or None for the model card's.
        guidance: guidance scale, or None for the model card's.
        calibration_prompts: prompts the input statistics are recorded on.
        calibration_mib: memory bound of the recorded samples of one model, in MiB.
        metrics: version of the metric definitions.
    """

    name: str
    dataset: str
    summary: str
    seed: int | None = None
    block: int = 16
    dtype: str = "float32"
    selection: str = "nesting order"
    steps: int | None = None
    guidance: float | None = None
    calibration_prompts: int = 16
    calibration_mib: int = 256
    metrics: int = 1


@dataclass(frozen=True)
class EffectiveProtocol:
    """A protocol with its seed settled: what a run folder belongs to."""

    base: Protocol
    seed: int

    def to_json(self) -> dict[str, Any]:
        """Return everything that is hashed, JSON types."""
        fields = asdict(self.base)
        del fields["summary"], fields["dataset"]
        return {**fields, "seed": self.seed}

    @property
    def hash(self) -> str:
        """First 12 hexadecimal digits of the sha256 of `to_json()`."""
        return digest_json(self.to_json())[:12]


def _protocols() -> dict[str, Protocol]:
    from harness.protocols.scenes import PROTOCOLS

    return {protocol.name: protocol for protocol in PROTOCOLS}


def names() -> list[str]:
    """Return the names of all protocols."""
    return list(_protocols())


def settle(name: str, seed: int | None, block: int | None = None) -> EffectiveProtocol:
    """Return protocol `name` with its seed settled.

    Args:
        name: the protocol.
        seed: seed of the noise, or None for the protocol's own or the default.
        block: prompts per batch in place of the protocol's. Noise belongs to the prompt, so only rounding
            differs; it is another protocol all the same, with another hash.

    Raises:
        UserError: the name is unknown, or a seed is given and the protocol fixes its own, or it is negative.
    """
    known = _protocols()
    if name not in known:
        raise unknown("protocol", name, known)
    protocol = known[name]
    if protocol.seed is not None and seed is not None:
        raise UserError(f"protocol {name} fixes its seed ({protocol.seed}); leave --seed out")
    if seed is not None and not 0 <= seed < 2**63:
        raise UserError(f"--seed {seed} is out of range; valid: 0 to 2^63-1")
    settled = protocol.seed if protocol.seed is not None else (DEFAULT_SEED if seed is None else seed)
    return EffectiveProtocol(protocol if block is None else replace(protocol, block=block), settled)
