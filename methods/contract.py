"""What a quantization method is, and what it is handed.

A method is a frozen config dataclass and a function, registered by name:

    @dataclass(frozen=True)
    class RoundConfig(MethodConfig):
        group: int = 64

    @method("round", RoundConfig, version=1, summary="round to nearest, group absmax")
    def quantize(job: QuantizeJob, config: RoundConfig) -> None:
        for target in job.targets:
            layer = job.layer(target.name)
            job.replace(target.name, ...)       # a harness.kernels.layers packed layer

A method never imports the runner: everything it may use is in `QuantizeJob`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

from torch import Tensor, nn

if TYPE_CHECKING:
    from harness.methods.training.trajectories import Teacher

LayerKind = Literal["linear", "conv2d"]


@dataclass(frozen=True)
class LayerTarget:
    """One layer the policy hands to the method.

    Attributes:
        name: module path inside the denoiser, e.g. `transformer_blocks.0.attn1.to_q`.
        role: what the layer is for, e.g. `attn.q` (docs/design.md lists the roles).
        kind: `linear` or `conv2d`.
        w_bits: weight bits, 1-8 (16 = keep, never handed to a method).
        a_bits: activation bits, 1-8, or 16 for weight-only.
        input_group: layers with the same value consume the same input tensor (q, k and v of one attention).
        after: the activation function whose output is the input, `gelu` or `silu`; empty for any other input.
    """

    name: str
    role: str
    kind: LayerKind
    w_bits: int
    a_bits: int
    input_group: str
    after: Literal["", "gelu", "silu"] = ""


class CalibrationStream(Protocol):
    """Statistics of each target's input, recorded on the 16-bit model by streaming (bounded memory)."""

    @property
    def steps(self) -> int:
        """Number of sampling steps of the schedule the statistics were recorded on."""
        ...

    def absmax(self, name: str) -> Tensor:
        """Largest |x| per input channel over all calibration data: float32 [in_channels]."""
        ...

    def step_range(self, name: str) -> Tensor:
        """Smallest and largest value of the input at each sampling step: float32 [steps, 2]."""
        ...

    def samples(self, name: str) -> Tensor:
        """A uniform sample of inputs, float32.

        Linear: [tokens, in_features]. Conv2d: [images, in_channels, height, width].
        """
        ...


@dataclass(frozen=True)
class MethodConfig:
    """Base of every method's config: frozen, every field of a JSON type, every field with a default."""

    def mean_bits(self, bits: int) -> tuple[float, float]:
        """Return the least and the largest mean code width of a layer of nominally `bits` bits.

        A method whose layers may store more (or fewer) bits per weight than their name says overrides this;
        `harness check-method` holds it to what it declares.
        """
        return float(bits), float(bits)


@dataclass
class QuantizeJob:
    """One quantization of one denoiser.

    Attributes:
        denoiser: the module whose target layers the method replaces, float32, in eval mode.
        targets: the layers to quantize, in module order.
        calibration: input statistics, or None when the method declared that it needs none.
        width: hidden width of the denoiser, for rules that scale with it.
        embedded: whether this is one of the small embedded models.
        seed: for any randomness inside the method.
        notes: per-layer remarks for the ledger (chosen split, smoothing exponent), JSON types.
        teacher: samples from the denoiser for distillation, until its layers are replaced; None where there
            is no pipeline around it.
        workspace: folder in which a long quantization may keep its state between interruptions, and leave
            curves; None to keep nothing.
    """

    denoiser: nn.Module
    targets: tuple[LayerTarget, ...]
    calibration: CalibrationStream | None
    width: int
    embedded: bool = True
    seed: int = 0
    notes: dict[str, dict[str, Any]] = field(default_factory=dict)
    teacher: Teacher | None = None
    workspace: Path | None = None

    def layer(self, name: str) -> nn.Linear | nn.Conv2d:
        """Return the float layer `name`; raises TypeError if it is neither Linear nor Conv2d."""
        module = self.denoiser.get_submodule(name)
        if not isinstance(module, nn.Linear | nn.Conv2d):
            raise TypeError(f"{name} is a {type(module).__name__}, not a Linear or Conv2d")
        return module

    def stream(self) -> CalibrationStream:
        """Return the calibration stream; raises ValueError when the job carries none."""
        if self.calibration is None:
            raise ValueError("this method needs calibration, and the job carries none")
        return self.calibration

    def input_groups(self) -> Iterator[list[LayerTarget]]:
        """Yield the targets that share one input tensor, in the order of the first of each."""
        found: dict[str, list[LayerTarget]] = {}
        for target in self.targets:
            found.setdefault(target.input_group, []).append(target)
        yield from found.values()

    def replace(self, name: str, packed: nn.Module) -> None:
        """Put `packed` in the place of the float layer `name`."""
        parent, _, child = name.rpartition(".")
        setattr(self.denoiser.get_submodule(parent), child, packed)

    def note(self, name: str, **remarks: Any) -> None:
        """Add remarks on layer `name` to its ledger row."""
        self.notes.setdefault(name, {}).update(remarks)


ConfigT = TypeVar("ConfigT", bound=MethodConfig)


@dataclass(frozen=True)
class MethodSpec(Generic[ConfigT]):
    """A registered method.

    Attributes:
        name: the name on the command line.
        config: the config dataclass; its fields are the keys of `--set NAME.KEY=VALUE`.
        quantize: replaces every target of a job by a packed layer.
        version: part of the cell's key.
        weight_only: runs at A16 whatever `--act-bits` says.
        weight_bits: weight widths it declares; others give a typed `unsupported` row.
        act_bits: activation widths it declares.
        needs_calibration: whether the runner records input statistics first.
        reconstruction: built without the authors' formulas; tables carry a footnote.
        in_all: whether `--methods all` runs it; the further baselines run when they are named.
        summary: one line for `harness list methods`.
        variants: named sets of settings; `--methods NAME:SET` runs every member of one as a row of its own.
            Each member maps settings to texts as `--set` takes them.
    """

    name: str
    config: type[ConfigT]
    quantize: Callable[[QuantizeJob, ConfigT], None]
    version: int
    weight_only: bool = False
    weight_bits: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)
    act_bits: tuple[int, ...] = (4, 5, 6, 7, 8, 16)
    needs_calibration: bool = False
    reconstruction: bool = False
    in_all: bool = True
    summary: str = ""
    variants: Mapping[str, tuple[Mapping[str, str], ...]] = field(default_factory=dict)


def method(
    name: str, config: type[ConfigT], *, version: int, **traits: Any
) -> Callable[[Callable[[QuantizeJob, ConfigT], None]], Callable[[QuantizeJob, ConfigT], None]]:
    """Register the decorated function as method `name`.

    Args:
        name: the name on the command line.
        config: the frozen config dataclass.
        version: raise it when the results change.
        **traits: further fields of `MethodSpec`.

    Raises:
        ValueError: another function is registered under the name (on registration).
    """

    def decorate(function: Callable[[QuantizeJob, ConfigT], None]) -> Callable[[QuantizeJob, ConfigT], None]:
        from harness.methods.registry import register

        register(MethodSpec(name=name, config=config, quantize=function, version=version, **traits))
        return function

    return decorate
