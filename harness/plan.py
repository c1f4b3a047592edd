"""From a request to cells: which there are, what identifies them, and what they are likely to cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.bits import Bits, parse_bits
from harness.canonical import digest_file, digest_json
from harness.datasets.contract import Prompt, PromptSet
from harness.datasets.fileset import FileSet
from harness.datasets.images import find_images
from harness.datasets.leaks import Overlap, overlap
from harness.errors import not_installed
from harness.prompting import calibration_prompts, calibration_sets, evaluation_prompts, file_digest
from harness.protocols import EffectiveProtocol, for_model, settle
from harness.reports.record import Identity
from harness.request import (
    REFERENCE,
    Request,
    check_numbers,
    choose_data_paths,
    choose_methods,
    choose_model_paths,
    choose_models,
    settle_backend,
)
from harness.world import MethodFacts, ModelFacts, Setting, World

REFERENCE_BITS = Bits(16, 16)
KEY_DIGITS = 16


@dataclass(frozen=True)
class Cell:
    """One cell of the grid.

    Attributes:
        identity: what tables call it; `identity.cell` is its key.
        hashed: what the key is the digest of.
        setting: how its model is opened.
        method: None for the reference.
        reference: key of its model's reference on the same prompts.
        calibration: key of the input statistics it needs, or None.
        unsupported: why it cannot run, or None.
        quantize_seconds: what quantizing it was seen to take, or None.
    """

    identity: Identity
    hashed: dict[str, Any]
    setting: Setting
    method: MethodFacts | None
    reference: str
    calibration: str | None = None
    unsupported: str | None = None
    quantize_seconds: float | None = None

    @property
    def key(self) -> str:
        """Name of its folder."""
        return self.identity.cell

    @property
    def bits(self) -> Bits:
        """Weight and activation bits."""
        return Bits(self.identity.wbits, self.identity.abits)

    @property
    def title(self) -> str:
        """What progress and messages call it."""
        if self.method is None:
            return f"{self.identity.model} reference"
        variant = "" if self.identity.variant == "default" else f" [{self.identity.variant}]"
        return f"{self.identity.model} {self.identity.method}{variant} {self.bits}"


@dataclass(frozen=True)
class Plan:
    """Cells in the order of the grid, references first within a model.

    Attributes:
        prompts: by dataset, whole blocks: the first `n` count, the rest fills the last batch.
        calibration_prompts: by dataset.
        data_digest: digest of the files that metrics were given.
        leaks: by dataset, what its calibration and evaluation prompts have in common.
    """

    protocol: EffectiveProtocol
    cells: tuple[Cell, ...]
    n: int
    prompts: dict[str, list[Prompt]]
    calibration_prompts: dict[str, list[Prompt]]
    device: str
    out: Path
    data_digest: str
    models: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    bits: tuple[Bits, ...] = ()
    leaks: dict[str, Overlap] = field(default_factory=dict)

    def blocks(self, dataset: str) -> list[list[Prompt]]:
        """Return the prompts of each block."""
        size = self.protocol.base.block
        prompts = self.prompts[dataset]
        return [prompts[start : start + size] for start in range(0, len(prompts), size)]


@dataclass
class _Grid:
    """What `make_plan` has settled before it forms cells.

    Attributes:
        data: by dataset, the digest of its file, if it is read from one.
        calibration_data: by dataset, the digest of the file its calibration prompts are read from.
    """

    world: World
    protocol: EffectiveProtocol
    device: str
    data_paths: dict[str, Path]
    backend: str = "reference"
    fingerprint: dict[str, str] = field(default_factory=dict)
    prompts: dict[str, list[Prompt]] = field(default_factory=dict)
    calibration_prompts: dict[str, list[Prompt]] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)
    calibration_data: dict[str, str] = field(default_factory=dict)


def make_plan(request: Request, world: World) -> Plan:
    """Check a request and lay out its cells.

    Raises:
        UserError: anything in the request is unknown, out of range or contradictory.
    """
    check_numbers(request)
    protocol = settle(request.protocol, request.seed, request.block)
    bits = parse_bits(request.bits, request.act_bits)
    models = choose_models(request, world)
    datasets = request.datasets or (protocol.base.dataset,)
    sets = {name: world.dataset(name) for name in datasets}
    choice = choose_methods(request, world)
    calibrated_on = calibration_sets(protocol, sets, choice, world)
    read = sets | {prompts.name: prompts for prompts in calibrated_on.values()}
    # The set that the protocol calibrates on may be given also where no method reads it.
    idle = {protocol.base.calibration_dataset} - read.keys()
    given = [text for text in request.data_paths if text.partition("=")[0] not in idle]
    data_paths = choose_data_paths(given, read, world)
    prompts = {
        name: evaluation_prompts(found, request.prompts, protocol, data_paths.get(name))
        for name, found in sets.items()
    }
    grid = _Grid(world, protocol, world.device(request.device), data_paths, prompts=prompts)
    grid.backend = settle_backend(request.backend, grid.device)
    grid.fingerprint = world.fingerprint(grid.device)
    for name, found in sets.items():
        used = calibrated_on.get(name)
        path = None if used is None else data_paths.get(used.name)
        grid.calibration_prompts[name] = calibration_prompts(used, name, protocol, path)
        if used is not None and path is not None:
            grid.calibration_data[name] = file_digest(used, path)
        if name in data_paths:
            grid.data[name] = file_digest(found, data_paths[name])
    paths = choose_model_paths(request.model_paths, models, world)
    facts = [world.model(name, for_model(protocol.to_json(), name), paths) for name in models]
    cells = [cell for model in facts for name in datasets for cell in _cells(grid, model, name, choice, bits)]
    return Plan(
        protocol=protocol,
        cells=tuple(cells),
        n=request.prompts,
        prompts=prompts,
        calibration_prompts=grid.calibration_prompts,
        device=grid.device,
        out=request.out or Path("runs") / f"{protocol.base.name}-{protocol.hash}",
        data_digest=digest_json(
            {k: _path_digest(p) for k, p in data_paths.items() if k not in read}
            | _image_stamps(request.prompts, prompts, sets, data_paths)
        ),
        models=tuple(models),
        methods=tuple(dict.fromkeys(method.name for method in choice)),
        bits=bits,
        leaks={
            name: overlap(grid.calibration_prompts[name], found[: request.prompts])
            for name, found in prompts.items()
        },
    )


def _cells(
    grid: _Grid, model: ModelFacts, dataset: str, methods: Sequence[MethodFacts], bits: Sequence[Bits]
) -> list[Cell]:
    """Return the reference and then each method at each width, without repetitions."""
    protocol = for_model(grid.protocol.to_json(), model.name)
    setting = Setting(model, dataset, protocol, grid.device, grid.data_paths, backend=grid.backend)
    reference = _cell(grid, setting, None, REFERENCE_BITS, "")
    found = {reference.key: reference}
    for method in methods:
        for asked in bits:
            width = Bits(asked.weight, 16) if method.weight_only else asked
            cell = _cell(grid, setting, method, width, reference.key)
            found.setdefault(cell.key, cell)
    return list(found.values())


def _cell(grid: _Grid, setting: Setting, method: MethodFacts | None, bits: Bits, reference: str) -> Cell:
    protocol = grid.protocol
    hashed: dict[str, Any] = {
        "model": setting.model.name,
        "weights": setting.model.digest,
        "sampling": setting.model.sampling,
        "method": REFERENCE if method is None else method.name,
        "version": 0 if method is None else method.version,
        "config": {} if method is None else method.config,
        "bits": [bits.weight, bits.act],
        "dataset": setting.dataset,
        "protocol": protocol.to_json(),
        "device": setting.device,
        "backend": setting.backend,
        "fingerprint": {**grid.fingerprint, "method": "" if method is None else method.fingerprint},
    }
    if setting.dataset in grid.data:
        hashed["data"] = grid.data[setting.dataset]
    if (
        method is not None and setting.dataset in grid.calibration_data
    ):  # a method may train without calibrating
        hashed["calibration_data"] = grid.calibration_data[setting.dataset]
    if setting.model.card:
        hashed["card"] = setting.model.card
    if method is not None and method.libraries:
        hashed["libraries"] = method.libraries
    key = digest_json(hashed)[:KEY_DIGITS]
    identity = Identity(
        cell=key,
        model=setting.model.name,
        method=hashed["method"],
        variant="default" if method is None else method.variant,
        config=hashed["config"],
        dataset=setting.dataset,
        protocol=protocol.base.name,
        protocol_hash=protocol.hash,
        seed=protocol.seed,
        device=setting.device,
        backend=setting.backend,
        dtype=setting.protocol["dtype"],
        wbits=bits.weight,
        abits=bits.act,
        reconstruction=method is not None and method.reconstruction,
        library="" if method is None else method.library,
    )
    needs = method is not None and method.needs_calibration
    return Cell(
        identity=identity,
        hashed=hashed,
        setting=setting,
        method=method,
        reference=reference or key,
        calibration=_calibration_key(grid, setting) if needs else None,
        unsupported=_unfit(grid, setting)
        or (None if method is None else _unsupported(method, bits, setting.device)),
    )


def _calibration_key(grid: _Grid, setting: Setting) -> str:
    prompts = [prompt.identity() for prompt in grid.calibration_prompts[setting.dataset]]
    about = {
        "weights": setting.model.digest,
        "sampling": setting.model.sampling,
        "protocol": grid.protocol.to_json(),
        "device": setting.device,
        "fingerprint": grid.fingerprint,
        "prompts": prompts,
    }
    return digest_json(about)[:KEY_DIGITS]


def _unfit(grid: _Grid, setting: Setting) -> str | None:
    """Why a model cannot draw what a prompt set asks for, or None."""
    condition = setting.model.condition
    classes = all("class" in prompt.facts for prompt in grid.prompts[setting.dataset])
    if condition == "class" and not classes:
        return f"{setting.model.name} draws classes; dataset {setting.dataset} has captions"
    if condition == "text" and classes:
        return f"{setting.model.name} reads captions; dataset {setting.dataset} has classes"
    return None


def _unsupported(method: MethodFacts, bits: Bits, device: str) -> str | None:
    """Why a method cannot run at these widths, on this device or with what is installed, or None."""
    if bits.weight not in method.weight_bits:
        declared = ", ".join(map(str, method.weight_bits))
        return f"{method.name} declares weight bits {declared}, not {bits.weight}"
    if not method.weight_only and bits.act not in method.act_bits:
        declared = ", ".join(map(str, method.act_bits))
        return f"{method.name} declares activation bits {declared}, not {bits.act}"
    if method.devices and device not in method.devices:
        return f"{method.name} runs on {' and '.join(method.devices)}, not on {device}"
    missing = [name for name, version in method.libraries.items() if version is None]
    return not_installed(missing[0]) if missing else None


def _image_stamps(
    n: int,
    prompts: Mapping[str, Sequence[Prompt]],
    sets: Mapping[str, PromptSet],
    data_paths: Mapping[str, Path],
) -> dict[str, str]:
    """Return a digest of the real images of each prompt set that has some; figures depend on them."""
    stamps = {}
    for name, found in sets.items():
        if not isinstance(found, FileSet) or name not in data_paths:
            continue
        files = [file for file in find_images(prompts[name][:n], found, data_paths[name]) if file is not None]
        if files:
            stats = [(file.name, file.stat()) for file in files]
            stamps[f"images of {name}"] = digest_json(
                [[file, stat.st_size, stat.st_mtime_ns] for file, stat in stats]
            )
    return stamps


def _path_digest(path: Path) -> str:
    if path.is_file():
        return digest_file(path)
    files = sorted(entry for entry in path.rglob("*") if entry.is_file())
    return digest_json({str(entry.relative_to(path)): digest_file(entry) for entry in files})
