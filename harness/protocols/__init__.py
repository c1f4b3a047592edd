"""Protocols: how prompts are chosen and images made and judged, as data, named and hashed.

Numbers of different protocol hashes never share a column. The number of prompts is not part of a protocol.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from harness.canonical import digest_json
from harness.errors import UserError, unknown

DEFAULT_SEED = 0
_NOT_HASHED = ("summary", "dataset", "published_n", "source", "fetches")
_LATER: dict[str, Any] = {
    "seeds": "sha256",
    "calibration_dataset": None,
    "models": {},
    "policy": "harness",
}
"""Fields that came later with the value they had unsaid: left out at that value, so that hashes stay."""


@dataclass(frozen=True)
class ModelSettings:
    """What a protocol fixes for one model; None leaves it to the protocol, then to the model's card.

    Attributes:
        dtype: of the pipeline.
        steps: sampling steps.
        guidance: guidance scale, as the pipeline's call takes it.
        height: image height in pixels.
        width: image width in pixels.
        negative_prompt: what guidance leads away from; unsaid, the empty text.
    """

    dtype: str | None = None
    steps: int | None = None
    guidance: float | None = None
    height: int | None = None
    width: int | None = None
    negative_prompt: str | None = None


@dataclass(frozen=True)
class Protocol:
    """One way of making and judging images.

    Attributes:
        name: the name on the command line.
        dataset: the prompt set used when `--dataset` is not given; not hashed, a cell names its own.
        summary: one line; not hashed.
        seed: the seed it fixes, or None when `--seed` sets it.
        block: prompts per block: one batch and the unit of resuming.
        dtype: of the pipeline.
        selection: which prompts of a set are taken (`harness.datasets.selection`).
        steps: sampling steps, or None for the model card's.
        guidance: guidance scale, or None for the model card's.
        calibration_prompts: prompts the input statistics are recorded on.
        calibration_mib: memory bound of the recorded samples of one model, in MiB.
        metrics: version of the metric definitions.
        seeds: rule of each image's seed (`harness.datasets.selection`).
        calibration_dataset: the set calibrated on, or None for the evaluation set's own.
        models: what is fixed for single models.
        policy: which layers are quantized how: `harness`, or `published` for what each model's paper did.
        published_n: prompts the published numbers are over, or None; not hashed.
        source: where it is published, and what had to be settled beside it; not hashed.
        fetches: files that `harness fetch` downloads for it (`harness.datasets.sources`); not hashed.
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
    seeds: str = "sha256"
    calibration_dataset: str | None = None
    models: Mapping[str, ModelSettings] = field(default_factory=dict)
    policy: str = "harness"
    published_n: int | None = None
    source: str = ""
    fetches: tuple[str, ...] = ()


@dataclass(frozen=True)
class EffectiveProtocol:
    """A protocol with its seed settled: what a run folder belongs to."""

    base: Protocol
    seed: int

    def to_json(self) -> dict[str, Any]:
        """Return everything that is hashed, JSON types."""
        fields = self.hashed()
        unsaid = [name for name, value in _LATER.items() if fields[name] == value]
        return {name: value for name, value in fields.items() if name not in unsaid}

    def hashed(self) -> dict[str, Any]:
        """Return the fields that `to_json` takes its own from, none left out for being unsaid."""
        return {name: value for name, value in self.show().items() if name not in _NOT_HASHED}

    def show(self) -> dict[str, Any]:
        """Return every field, JSON types: what is hashed and what is not."""
        fields = {**asdict(self.base), "seed": self.seed}
        fields["models"] = {
            model: {name: value for name, value in settings.items() if value is not None}
            for model, settings in fields["models"].items()
        }
        return fields

    @property
    def hash(self) -> str:
        """First 12 hexadecimal digits of the sha256 of `to_json()`."""
        return digest_json(self.to_json())[:12]


def for_model(protocol: Mapping[str, Any], model: str) -> dict[str, Any]:
    """Return what a hashed protocol says of one model: its own settings in the place of the general ones."""
    general = {name: value for name, value in protocol.items() if name != "models"}
    return {**general, **protocol.get("models", {}).get(model, {})}


def _protocols() -> dict[str, Protocol]:
    from harness.protocols import adm, mlperf, mpqdm, scenes, svdquant

    modules = (scenes, svdquant, mlperf, mpqdm, adm)
    return {protocol.name: protocol for module in modules for protocol in module.PROTOCOLS}


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
