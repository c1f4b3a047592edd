"""The world of the runner: the project's models, methods, prompt sets, metrics and measurements.

Everything heavy is imported where it is used: the command line imports this module before it knows whether it
will need any of it.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from harness.canonical import canonical_json, digest_file, digest_json
from harness.errors import CellError, UserError, unknown
from harness.fingerprint import library_versions, source_digest
from harness.world import Measurement, MethodFacts, Missing, ModelFacts, Quantized, Session, Setting

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from harness.datasets.contract import Prompt, PromptSet
    from harness.methods.contract import LayerTarget
    from harness.methods.training.trajectories import Teacher
    from harness.metrics.images import Pictures
    from harness.models.card import ModelCard
    from harness.reports.record import Metric

_GENERATING = (
    "harness.generate",
    "harness.calibrate",
    "harness.trajectory",
    "harness.noise",
    "harness.models.load",
)
_JUDGING = ("harness.reduce", "harness.datasets.scenes.recogniser")
_STORING = ("harness.kernels.checkpoint", "harness.kernels.ledger")
_EMBEDDED_SECONDS_PER_IMAGE = {"tiny-dit": 0.15, "tiny-unet": 0.25}
"""Of the unquantized model, on one of two busy cores (docs/results/default)."""
_BYTES_PER_PIXEL, _EMBEDDED_BYTES_PER_PIXEL = 2.0, 0.9
"""Of a stored image with its features: photographs as PNG, and rendered scenes."""
_EMBEDDED_CALIBRATION_BYTES = 68_000_000


def effective_card(name: str, protocol: Mapping[str, Any]) -> ModelCard:
    """Return a model's card with the sampling that the protocol asks for."""
    from harness.models import registry

    card = registry.get(name)
    fixed = {key: protocol.get(key) for key in ("steps", "guidance", "height", "width")}
    changes: dict[str, Any] = {key: value for key, value in fixed.items() if value is not None}
    if protocol.get("negative_prompt") is not None:
        changes["call"] = {**card.sampling.call, "negative_prompt": protocol["negative_prompt"]}
    return replace(card, sampling=replace(card.sampling, **changes))


def planned_card(facts: ModelFacts) -> ModelCard:
    """Return a model's card with the sampling that was settled when the run was planned."""
    from harness.models import registry
    from harness.models.card import Sampling

    return replace(registry.get(facts.name), sampling=Sampling(**facts.sampling))


def _missing(card: ModelCard, given: Path | None) -> Missing | None:
    """Return what is missing of a model in the folder given, else in the hub's cache; None for nothing."""
    from harness.models.locate import missing_files, snapshot

    path = given or (None if card.hub is None else snapshot(card.hub))
    if path is None:
        return Missing(f"{card.name}'s folder, which `harness convert` makes", False)
    files = ", ".join(missing_files(card, path))
    if not files:
        return None
    if given is not None or card.hub is None:
        return Missing(f"{files} in {path}", False)
    return Missing(f"{files} of {card.hub.repo}@{card.hub.revision[:8]}", True)


def parameter_count(files: Iterable[Path]) -> int:
    """Return how many numbers safetensors files hold, from their headers alone.

    Raises:
        UserError: a file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    count = 0
    for path in files:
        try:
            with safe_open(path, framework="numpy") as file:
                for key in file.keys():  # noqa: SIM118 (not a dict)
                    size = 1
                    for length in file.get_slice(key).get_shape():
                        size *= length
                    count += size
        except SafetensorError as error:
            raise UserError(f"{path} is damaged: {error}") from error
    return count


def files_stamp(path: Path) -> str:
    """Return a digest of the sizes and times of a model's files, and of a VAE beside it."""
    shared = path.parent / "vae"
    folders = [path, shared] if shared.is_dir() else [path]
    files = [entry for folder in folders for entry in sorted(folder.rglob("*")) if entry.is_file()]
    stats = [(entry, entry.stat()) for entry in files]
    return digest_json([[str(entry), stat.st_size, stat.st_mtime_ns] for entry, stat in stats])


class ModelSession:
    """One pipeline opened in a worker."""

    def __init__(self, setting: Setting) -> None:
        """Load the pipeline.

        Raises:
            UserError: its folder is damaged.
            CellError: `corrupt`, when it is not what the cell's key was formed from.
        """
        import torch

        from harness.kernels.dispatch import Backend, set_backend
        from harness.models.load import load_pipeline

        if files_stamp(setting.model.path) != setting.model.stamp:
            raise CellError("corrupt", f"the files of {setting.model.name} changed during the run; run again")
        self._card = planned_card(setting.model)
        self._protocol = setting.protocol
        self._seed = int(setting.protocol["seed"])
        self._policy = str(setting.protocol.get("policy", "harness"))
        self._device = setting.device
        self._dataset, self._data_paths = setting.dataset, setting.data_paths
        set_backend(cast(Backend, setting.backend))
        dtype = getattr(torch, setting.protocol["dtype"])
        self._pipeline = load_pipeline(self._card, setting.model.path, setting.device, dtype)
        self._reference: Any = None
        self._targets: tuple[LayerTarget, ...] = ()
        self._notes: dict[str, dict[str, Any]] = {}

    @property
    def denoiser(self) -> Any:
        """The network that is quantized, its target layers packed once that was done."""
        return getattr(self._pipeline, self._card.denoiser)

    def _training_prompts(self, count: int) -> Sequence[Prompt]:
        """Return the first `count` prompts of those calibrated on; fewer if the set has fewer."""
        from harness.datasets import registry
        from harness.datasets.selection import calibration_of, select

        name = self._protocol.get("calibration_dataset") or self._dataset
        found, path, order = registry.get(name), self._data_paths.get(name), self._protocol["selection"]
        if name == self._dataset:  # as `harness.prompting.calibration_prompts`
            return calibration_of(found, count, order, path)
        return select(found, min(count, found.count(path)), order, path)

    def _teacher(self) -> Teacher:
        """Return what samples trajectories of the pipeline."""
        from harness.trajectory import PipelineTeacher

        return PipelineTeacher(self._pipeline, self._card, self._training_prompts, self._seed)

    def calibrate(self, prompts: Sequence[Prompt], path: Path) -> None:
        """Record the input statistics of every layer the policy may quantize."""
        from harness.calibrate import record_calibration
        from harness.models.roles import targets

        names = [target.name for target in targets(self._card, self.denoiser, 8, 8, self._policy)]
        budget = int(self._protocol["calibration_mib"]) * 2**20
        stream = record_calibration(self._pipeline, self._card, names, list(prompts), self._seed, budget)
        stream.save(path)

    def quantize(
        self, method: MethodFacts, bits: tuple[int, int], calibration: Path | None, workspace: Path
    ) -> float:
        """Run the method, check what it put in the place of the targets, return its seconds."""
        from harness.calibrate import Calibration
        from harness.methods import registry
        from harness.methods.contract import QuantizeJob
        from harness.models.roles import hidden_width, targets

        self._targets = targets(self._card, self.denoiser, *bits, self._policy)
        job = QuantizeJob(
            denoiser=self.denoiser,
            targets=self._targets,
            calibration=None
            if calibration is None
            else Calibration.load(calibration).on(self.denoiser.device),
            width=hidden_width(self.denoiser),
            embedded=self._card.embedded,
            seed=self._seed,
            teacher=self._teacher(),
            workspace=workspace,
        )
        config = registry.configure(method.name, method.overrides)
        started = time.perf_counter()
        registry.get(method.name).quantize(job, config)
        seconds = time.perf_counter() - started
        self._notes = job.notes
        check_packed(self.denoiser, [target.name for target in self._targets])
        return seconds

    def save(self, folder: Path) -> Quantized:
        """Write model.safetensors, layers.json and ledger.json."""
        from harness.kernels.checkpoint import checkpoint_bytes, save_checkpoint
        from harness.kernels.ledger import build_ledger

        ledger = build_ledger(self.denoiser, self._targets, self._notes)
        save_checkpoint(self.denoiser, folder)
        (folder / "ledger.json").write_text(json.dumps(ledger.to_json(), indent=1) + "\n", encoding="utf-8")
        return Quantized(ledger.effective_bits, ledger.weight_bytes, checkpoint_bytes(folder))

    def load(self, folder: Path) -> None:
        """Replace the target layers by those of a checkpoint; the float ones stay for `measure`."""
        from harness.kernels.checkpoint import load_checkpoint
        from harness.methods.libraries.layer import restore

        self._reference = copy.deepcopy(self.denoiser)
        try:
            load_checkpoint(self.denoiser, folder)
            restore(self.denoiser)
        except ValueError as error:
            raise CellError("corrupt", f"the checkpoint cannot be loaded: {error}") from error

    def generate(self, prompts: Sequence[Prompt]) -> NDArray[np.uint8]:
        """Generate one block as one batch."""
        from harness.generate import generate_block

        return generate_block(self._pipeline, self._card, list(prompts), self._seed)

    def roads(self) -> dict[str, str]:
        """Return the kernels each packed layer ran in the last forward, by layer."""
        from harness.kernels.roads import roads_taken

        return roads_taken(self.denoiser)

    def measure(self, prompts: Sequence[Prompt]) -> Measurement:
        """Time a step for the first prompt in turns with the unquantized one; memory; errors by step."""
        from harness.generate import denoiser_call
        from harness.measure.environment import environment
        from harness.measure.latency import compare_step_ms
        from harness.measure.memory import forward_peak_bytes, module_bytes
        from harness.measure.step_error import step_errors

        timed, errors = list(prompts[:1]), None
        if self._reference is not None:
            beside = copy.copy(self._pipeline)
            setattr(beside, self._card.denoiser, self._reference)
            errors = step_errors(beside, self._card, self.denoiser, prompts, self._seed)
        ours = theirs = denoiser_call(self._pipeline, self._card, timed, self._seed)
        if self._reference is not None:
            theirs = denoiser_call(beside, self._card, timed, self._seed)
        times = compare_step_ms(ours, theirs, self._device)
        return Measurement(
            step_ms=times.quantized.median,
            step_ms_lo=times.quantized.lo,
            step_ms_hi=times.quantized.hi,
            step_ms_ref=times.reference.median,
            peak_bytes=forward_peak_bytes(ours, self._device, module_bytes(self.denoiser)),
            environment=environment(),
            step_ratio=times.ratio.median,
            step_ratio_lo=times.ratio.lo,
            step_ratio_hi=times.ratio.hi,
            step_error=errors,
        )


def check_packed(denoiser: Any, names: Sequence[str]) -> None:
    """Check that every target became a packed layer whose weight and tables are finite.

    Raises:
        CellError: `crashed` when a layer was left out, `nan` when one holds a number that is not finite.
    """
    import torch

    from harness.kernels.layers import PackedLayer

    layers = {name: denoiser.get_submodule(name) for name in names}
    left = [name for name, layer in layers.items() if not isinstance(layer, PackedLayer)]
    if left:
        raise CellError("crashed", f"the method left {len(left)} of {len(names)} layers unpacked: {left[0]}")
    for name, layer in layers.items():
        tables = [value for value in layer.state_dict().values() if value.is_floating_point()]
        if not all(bool(torch.isfinite(value).all()) for value in (layer.weight.dequantize(), *tables)):
            raise CellError("nan", f"the quantized weights of {name} are not finite")


class Project:
    """The project as the runner sees it."""

    preload: tuple[str, ...] = ("harness.preload",)

    def start_worker(self) -> None:
        """Fix what results depend on.

        One thread: images must not depend on the number of cores, and a time taken with every core is at the
        mercy of whatever else runs (threads that spin for a busy core cost fifty times the step).
        """
        import torch

        torch.set_num_threads(1)
        torch.manual_seed(0)
        # TF32 rounds float32 products to 10 bits, more than some methods' error.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.benchmark = False

    def model_names(self) -> list[str]:
        """Return the names of all models."""
        from harness.models import registry

        return registry.names()

    def default_model_names(self) -> list[str]:
        """Return the models whose weights ship with the package."""
        from harness.models import registry

        return [name for name in registry.names() if registry.get(name).embedded]

    def method_names(self) -> list[str]:
        """Return the names of the usable methods that `--methods all` runs."""
        from harness.methods import registry

        return [name for name in registry.names() if registry.get(name).in_all]

    def model(self, name: str, protocol: Mapping[str, Any], paths: Mapping[str, Path]) -> ModelFacts:
        """Return the facts of a model."""
        from harness.fetched import check_model
        from harness.models.load import weights_digest
        from harness.models.locate import fetch, locate, weight_files
        from harness.models.roles import policy_of

        card = effective_card(name, protocol)
        fetched = card.hub is not None and name not in paths
        path = (fetch(card) if fetched else locate(card, paths)).absolute()
        variant = None if card.hub is None else card.hub.variant
        digest = weights_digest(path, card.components, variant)
        check_model(name, path, digest)
        files, _ = weight_files(path / card.denoiser, variant)
        policy = policy_of(card, protocol.get("policy", "harness"))
        sampling = asdict(card.sampling)
        pixels = card.sampling.height * card.sampling.width
        return ModelFacts(
            name=name,
            path=path,
            digest=digest,
            sampling=sampling,
            seconds_per_image=_EMBEDDED_SECONDS_PER_IMAGE.get(name),
            bytes_per_image=round(
                pixels * (_EMBEDDED_BYTES_PER_PIXEL if card.embedded else _BYTES_PER_PIXEL)
            ),
            calibration_bytes=_EMBEDDED_CALIBRATION_BYTES if card.embedded else None,
            weight_bytes=2 * parameter_count(files),
            file_bytes=sum(file.stat().st_size for file in files if file.is_file()),
            stamp=files_stamp(path),
            condition=card.condition,
            card={}
            if card.embedded
            else {"family": card.family, "latents": card.latents, "policy": policy}
            | {"timestep_unit": card.timestep_unit},
        )

    def missing_models(self, names: Sequence[str], paths: Mapping[str, Path]) -> dict[str, Missing]:
        """Return the published models of which files are missing, and which."""
        from harness.models import registry

        cards = [card for card in map(registry.get, names) if not card.embedded]
        found = {card.name: _missing(card, paths.get(card.name)) for card in cards}
        return {name: missing for name, missing in found.items() if missing is not None}

    def method(self, name: str, overrides: Mapping[str, str]) -> MethodFacts:
        """Return the facts of a method with its settings."""
        from harness.methods import registry
        from harness.methods.libraries.contract import LibrarySpec  # the package registers its methods

        spec = registry.get(name)
        config = asdict(registry.configure(name, overrides))
        defaults = asdict(registry.configure(name, {}))
        changed = {key: value for key, value in config.items() if value != defaults[key]}
        return MethodFacts(
            name=name,
            version=spec.version,
            config=config,
            variant=variant_of(changed),
            overrides=dict(overrides),
            weight_only=spec.weight_only,
            weight_bits=tuple(spec.weight_bits),
            act_bits=tuple(spec.act_bits),
            needs_calibration=spec.needs_calibration,
            reconstruction=spec.reconstruction,
            fingerprint=source_digest([spec.quantize.__module__, *_STORING]),
            libraries=spec.versions() if isinstance(spec, LibrarySpec) else {},
            devices=spec.devices if isinstance(spec, LibrarySpec) else (),
        )

    def variants(self, name: str, label: str) -> Sequence[Mapping[str, str]]:
        """Return a named set of settings of a method."""
        from harness.methods import registry

        return registry.variants(name, label)

    def dataset(self, name: str) -> PromptSet:
        """Return a prompt set."""
        from harness.datasets import registry

        return registry.get(name)

    def check_data_path(self, name: str, path: Path) -> None:
        """Check the path of a metric's weights."""
        from harness.datasets import registry
        from harness.metrics import DATA_PATHS, check_data_path

        if name in registry.names():
            raise UserError(f"--data-path {name}: {name} is not among the datasets of this run")
        if name not in DATA_PATHS:
            takers = [kind for kind in registry.names() if registry.get(kind).takes_path]
            raise unknown("--data-path name", name, [*DATA_PATHS, *takers])
        check_data_path(name, path)

    def fingerprint(self, device: str) -> dict[str, str]:
        """Return the digests of what generates images, and the versions of torch and diffusers."""
        return {"generating": source_digest(_GENERATING, ("harness.models",)), **library_versions()}

    @cache  # noqa: B019 (there is one project per process)
    def judging(self) -> str:
        """Return the digest of the recogniser, its statistics, the metrics' sources and their weights."""
        from harness.datasets.scenes.recogniser import assets
        from harness.metrics.sources import cached_weights

        sources = source_digest(
            _JUDGING,
            ("harness.figures", "harness.metrics", "harness.datasets", "harness.reports.statistics"),
        )
        files = {path.name: digest_file(path) for path in sorted(assets().glob("*.safetensors"))}
        return digest_json({"sources": sources, "files": files, "cached": cached_weights()})

    def device(self, asked: str) -> str:
        """Settle the device."""
        import torch

        there = torch.cuda.is_available()
        if asked == "cuda" and not there:
            raise UserError("--device cuda: torch sees no CUDA device here; use --device cpu")
        return "cuda" if there and asked != "cpu" else "cpu"

    def open(self, setting: Setting) -> Session:
        """Load a pipeline."""
        return ModelSession(setting)

    def features(self, setting: Setting, images: NDArray[np.uint8]) -> NDArray[np.float32] | None:
        """Return the scene recogniser's features of images of the scene world."""
        import torch

        from harness.datasets.scenes.recogniser import load_recogniser
        from harness.metrics.scene import SIDE, to_tensor

        if setting.dataset != "scenes" or images.shape[1:3] != (SIDE, SIDE):
            return None
        with torch.inference_mode():
            features: NDArray[np.float32] = load_recogniser()(to_tensor(images)).features.numpy()
        return features

    def reduce(
        self,
        setting: Setting,
        prompts: Sequence[Prompt],
        images: tuple[Pictures, NDArray[np.float32] | None],
        reference: tuple[Pictures, NDArray[np.float32] | None] | None,
    ) -> tuple[dict[str, Metric], dict[str, list[float | None]]]:
        """Form the metrics of a cell."""
        from harness.reduce import CellData, reduce_cell

        against = (None, None) if reference is None else reference
        data = CellData(
            images=images[0],
            features=images[1],
            prompts=list(prompts),
            reference_images=against[0],
            reference_features=against[1],
            dataset=setting.dataset,
            data_paths=setting.data_paths,
            cache=setting.cache,
            device=setting.device,
        )
        return reduce_cell(data)


def variant_of(changed: Mapping[str, Any]) -> str:
    """Return what tables call a configuration: `default`, or what differs as `key=value,...` by key."""

    def shown(value: Any) -> str:
        return value if isinstance(value, str) else canonical_json(value)

    return ",".join(f"{key}={shown(changed[key])}" for key in sorted(changed)) or "default"


WORLD = Project()
