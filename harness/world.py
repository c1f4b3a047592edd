"""What the runner asks of the rest of the project: models, methods, prompt sets, and the work of each stage.

The runner knows the rest through these two protocols only; `harness.project` fills them in. A world is named
by `module:attribute`, so that each process can find its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from harness.datasets.contract import Prompt, PromptSet
from harness.reports.record import Metric

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from harness.metrics.images import Pictures


@dataclass(frozen=True)
class ModelFacts:
    """What planning knows of a model.

    Attributes:
        name: its name.
        path: folder of its weights.
        digest: sha256 of its weights and configs.
        stamp: digest of its files' sizes and times, for noticing cheaply that they changed after planning.
        sampling: effective sampling settings, JSON types.
        seconds_per_image: rough time the unquantized model takes for an image on one CPU thread, or None.
        bytes_per_image: rough size of a stored image with its features.
        weight_bytes: of the unquantized denoiser at 16 bits a weight.
        file_bytes: of the denoiser's weight files.
        condition: what it draws: `text`, `class` or `none`.
        card: what else of its card decides images, JSON types; empty for a model that ships.
        slowness: how many times longer than expected this machine was seen to take; 1 before it was.
        calibration_bytes: rough size of its input statistics, or None: as much as the protocol allows.
    """

    name: str
    path: Path
    digest: str
    sampling: dict[str, Any]
    seconds_per_image: float | None
    bytes_per_image: int
    weight_bytes: int
    file_bytes: int
    stamp: str = ""
    condition: str = "text"
    card: dict[str, Any] = field(default_factory=dict)
    slowness: float = 1.0
    calibration_bytes: int | None = None


class Missing(NamedTuple):
    """Files of a model that are not there.

    Attributes:
        files: which, and where they were looked for.
        on_hub: whether `harness fetch` can get them.
    """

    files: str
    on_hub: bool


@dataclass(frozen=True)
class MethodFacts:
    """What planning knows of a method with its settings; the fields are those of `MethodSpec`.

    Attributes:
        config: effective settings, JSON types.
        variant: `default`, or the settings that differ from the defaults as `key=value,...`.
        overrides: what `--set` said, for building the config again in another process.
        fingerprint: source digest of the method and what it imports.
        libraries: installed version of each library it calls, None where that is not installed.
        devices: kinds of devices it runs on; empty for all.
    """

    name: str
    version: int
    config: dict[str, Any]
    variant: str
    overrides: dict[str, str]
    weight_only: bool
    weight_bits: tuple[int, ...]
    act_bits: tuple[int, ...]
    needs_calibration: bool
    reconstruction: bool
    fingerprint: str
    libraries: dict[str, str | None] = field(default_factory=dict)
    devices: tuple[str, ...] = ()

    @property
    def library(self) -> str:
        """The libraries with their versions, as tables show them; empty for a method of the harness."""
        return ", ".join(f"{name} {version or ''}".strip() for name, version in self.libraries.items())


@dataclass(frozen=True)
class Quantized:
    """What is kept of a quantization beside the checkpoint: JSON types and finite numbers."""

    effective_bits: float
    weight_bytes: int
    checkpoint_bytes: int


@dataclass(frozen=True)
class Measurement:
    """Times and memory of one denoiser step.

    Attributes:
        step_ms: median milliseconds; `step_ms_lo` and `step_ms_hi` are the quartiles.
        step_ms_ref: median of the reference, interleaved.
        peak_bytes: peak memory of the forward.
        environment: versions, processor, threads.
        step_ratio: median over rounds of the step's time by the reference's, timed one after the other;
            `step_ratio_lo` and `step_ratio_hi` end its 95 % interval.
        step_error: relative squared error of the prediction at each sampling step, on the reference's inputs;
            None for the reference.
    """

    step_ms: float
    step_ms_lo: float
    step_ms_hi: float
    step_ms_ref: float
    peak_bytes: int
    environment: dict[str, Any] = field(default_factory=dict)
    step_ratio: float | None = None
    step_ratio_lo: float | None = None
    step_ratio_hi: float | None = None
    step_error: list[float | None] | None = None


@dataclass(frozen=True)
class Setting:
    """How a model is to be opened in a worker; picklable.

    Attributes:
        model: which one.
        dataset: name of the prompt set.
        protocol: the effective protocol, as hashed.
        device: `cpu` or `cuda`.
        data_paths: `--data-path` of prompt sets and metrics.
        cache: folder where features of images are kept, or None to keep none.
        backend: what packed layers run on, `reference` or `triton`.
    """

    model: ModelFacts
    dataset: str
    protocol: dict[str, Any]
    device: str
    data_paths: dict[str, Path]
    cache: Path | None = None
    backend: str = "reference"


class Session(Protocol):
    """One model opened in a worker, at first not quantized."""

    def calibrate(self, prompts: Sequence[Prompt], path: Path) -> None:
        """Record the input statistics of every target layer into `path`."""
        ...

    def quantize(
        self, method: MethodFacts, bits: tuple[int, int], calibration: Path | None, workspace: Path
    ) -> float:
        """Replace the target layers, check what was put there, and return the seconds the method took.

        A method that trains keeps its state and its curves in the folder `workspace`.

        Raises:
            harness.errors.CellError: a layer was left out (`crashed`) or is not finite (`nan`).
        """
        ...

    def save(self, folder: Path) -> Quantized:
        """Write the checkpoint of the quantized model into the existing folder `folder`."""
        ...

    def load(self, folder: Path) -> None:
        """Replace the target layers by those of a checkpoint."""
        ...

    def generate(self, prompts: Sequence[Prompt]) -> NDArray[np.uint8]:
        """Generate one block as one batch: uint8 [n, height, width, 3].

        Raises:
            harness.errors.CellError: latents or images are not finite (`nan`).
        """
        ...

    def roads(self) -> dict[str, str]:
        """Return the kernels each packed layer ran when the last block was generated, by layer."""
        ...

    def measure(self, prompts: Sequence[Prompt]) -> Measurement:
        """Time one step for the first prompt against the unquantized model, and take its peak memory.

        All the prompts serve for the error at each sampling step.
        """
        ...


class World(Protocol):
    """Everything the runner does not do itself."""

    preload: tuple[str, ...]

    def start_worker(self) -> None:
        """Prepare a forked process: one CPU thread, and the switches that results depend on."""
        ...

    def model_names(self) -> list[str]:
        """Return the models `--models` can name."""
        ...

    def default_model_names(self) -> list[str]:
        """Return the models that run when `--models` is not given, which `all` stands for."""
        ...

    def method_names(self) -> list[str]:
        """Return the methods `--methods all` stands for."""
        ...

    def missing_models(self, names: Sequence[str], paths: Mapping[str, Path]) -> dict[str, Missing]:
        """Return the models of which files are missing, and which these are; imports nothing heavy."""
        ...

    def model(self, name: str, protocol: Mapping[str, Any], paths: Mapping[str, Path]) -> ModelFacts:
        """Return the facts of a model; raises UserError when it is unknown or its weights are missing."""
        ...

    def method(self, name: str, overrides: Mapping[str, str]) -> MethodFacts:
        """Return the facts of a method; raises UserError when it, a key or a value is unknown."""
        ...

    def variants(self, name: str, label: str) -> Sequence[Mapping[str, str]]:
        """Return a named set of settings of a method; raises UserError when either is unknown."""
        ...

    def dataset(self, name: str) -> PromptSet:
        """Return a prompt set; raises UserError when it is unknown."""
        ...

    def check_data_path(self, name: str, path: Path) -> None:
        """Check a `--data-path`; raises UserError when nothing takes it or it is not there."""
        ...

    def fingerprint(self, device: str) -> dict[str, str]:
        """Return the digests of what every cell's images depend on beside model and method."""
        ...

    def judging(self) -> str:
        """Return the digest of what images are judged by: recogniser, metrics and their sources."""
        ...

    def device(self, asked: str) -> str:
        """Return `cpu` or `cuda` for `auto`, `cpu` or `cuda`; raises UserError when it is not there."""
        ...

    def open(self, setting: Setting) -> Session:
        """Load a model."""
        ...

    def features(self, setting: Setting, images: NDArray[np.uint8]) -> NDArray[np.float32] | None:
        """Return recogniser features float32 [n, 64], or None for a prompt set without a recogniser."""
        ...

    def reduce(
        self,
        setting: Setting,
        prompts: Sequence[Prompt],
        images: tuple[Pictures, NDArray[np.float32] | None],
        reference: tuple[Pictures, NDArray[np.float32] | None] | None,
    ) -> tuple[dict[str, Metric], dict[str, list[float | None]]]:
        """Return the metrics of a cell, and those that have one value per prompt."""
        ...
