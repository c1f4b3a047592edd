"""Records what the inputs of the target layers look like on the 16-bit model, in bounded memory.

One pass over a few prompts. Per input tensor: the largest |x| of each channel, the range at each sampling
step, and a uniform sample of token rows (Linear) or whole maps (Conv2d). Layers that consume the same tensor
(q, k and v of one attention) share one record.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from harness.datasets.contract import Prompt
from harness.generate import denoiser_call, sample, schedule
from harness.kernels.activations import StepIndex
from harness.models.card import ModelCard
from harness.models.roles import input_group, layer_roles
from harness.noise import hash_seed

TOKEN_ROWS = 1024
"""Token rows kept per Linear input."""
MAPS = 16
"""Whole maps kept per Conv2d input."""
DEFAULT_BUDGET_BYTES = 256 * 2**20
BATCH = 16
"""Prompts generated together."""

_FORMAT = "harness-calibration-1"
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class InputStatistics:
    """Statistics of one input tensor.

    Attributes:
        absmax: largest |x| per input channel, float32 [channels].
        step_range: smallest and largest value at each sampling step, float32 [steps, 2].
        samples: float32 [tokens, channels] or [images, channels, height, width].
    """

    absmax: Tensor
    step_range: Tensor
    samples: Tensor

    def problem(self) -> str | None:
        """Say in a few words why the three do not fit together, or None."""
        if any(t.dtype != torch.float32 for t in (self.absmax, self.step_range, self.samples)):
            return "not float32"
        if self.absmax.dim() != 1 or self.step_range.shape[1:] != (2,) or self.samples.dim() not in {2, 4}:
            return "wrong number of dimensions"
        if self.samples.shape[0] == 0 or self.samples.shape[1] != self.absmax.shape[0]:
            return "samples do not fit the channels"
        if not all(bool(torch.isfinite(t).all()) for t in (self.absmax, self.step_range, self.samples)):
            return "not finite"
        if bool((self.absmax < 0).any()) or bool((self.step_range[:, 0] > self.step_range[:, 1]).any()):
            return "not a range"
        return None


class Calibration:
    """Recorded input statistics: the `CalibrationStream` that methods are handed."""

    def __init__(
        self, steps: int, statistics: Mapping[str, InputStatistics], groups: Mapping[str, str]
    ) -> None:
        """Keep the statistics.

        Args:
            steps: number of sampling steps they were recorded on.
            statistics: by input group.
            groups: layer name -> the input group it consumes.

        Raises:
            ValueError: a group has no statistics, or its tensors do not fit together or the steps.
        """
        self._steps = steps
        self._statistics = dict(statistics)
        self._groups = dict(groups)
        self._device = torch.device("cpu")
        if set(self._groups.values()) != set(self._statistics):
            raise ValueError("calibration: the layers and the statistics do not belong together")
        for group, entry in self._statistics.items():
            problem = entry.problem() or ("wrong number of steps" if len(entry.step_range) != steps else None)
            if problem:
                raise ValueError(f"calibration of {group}: {problem}")

    def on(self, device: torch.device) -> Calibration:
        """Return the same calibration, its tensors handed out on a device; they are kept where they are."""
        seen = copy.copy(self)
        seen._device = device
        return seen

    @property
    def steps(self) -> int:
        """Number of sampling steps of the schedule the statistics were recorded on."""
        return self._steps

    @property
    def names(self) -> list[str]:
        """The layers with statistics."""
        return list(self._groups)

    def _of(self, name: str) -> InputStatistics:
        if name not in self._groups:
            raise KeyError(f"no calibration was recorded for {name!r}")
        return self._statistics[self._groups[name]]

    def absmax(self, name: str) -> Tensor:
        """Largest |x| per input channel over all calibration data: float32 [in_channels]."""
        return self._of(name).absmax.to(self._device)

    def step_range(self, name: str) -> Tensor:
        """Smallest and largest value of the input at each sampling step: float32 [steps, 2]."""
        return self._of(name).step_range.to(self._device)

    def samples(self, name: str) -> Tensor:
        """A uniform sample of inputs, float32 [tokens, in_features] or [images, channels, height, width]."""
        return self._of(name).samples.to(self._device)

    def save(self, path: Path) -> None:
        """Write everything to one safetensors file."""
        tensors = {}
        for group, entry in self._statistics.items():
            for part in ("absmax", "step_range", "samples"):
                tensors[f"{group}/{part}"] = getattr(entry, part).contiguous()
        metadata = {"format": _FORMAT, "steps": str(self._steps), "groups": json.dumps(self._groups)}
        save_file(tensors, path, metadata)

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read what `save` wrote.

        Raises:
            ValueError: the file is missing, damaged, or not such a file.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
            if metadata.get("format") != _FORMAT:
                raise ValueError("not a calibration file")
            steps, groups = int(metadata["steps"]), json.loads(metadata["groups"])
            if not isinstance(groups, dict):
                raise ValueError("no table of layers")
            statistics = {
                group: InputStatistics(
                    tensors.pop(f"{group}/absmax"),
                    tensors.pop(f"{group}/step_range"),
                    tensors.pop(f"{group}/samples"),
                )
                for group in dict.fromkeys(groups.values())
            }
            if tensors:
                raise ValueError(f"unexpected tensors, e.g. {min(tensors)}")
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no usable calibration: {error}") from error
        return cls(steps, statistics, groups)


class Reservoir:
    """A uniform sample without replacement of a stream of rows, of fixed size and reproducible.

    Every row draws a random priority and the `size` rows with the lowest ones are kept, which is a simple
    random sample of all rows seen, however they were grouped into calls.
    """

    def __init__(self, size: int, seed: int) -> None:
        """Keep at most `size` rows; `seed` fixes which."""
        self._size = size
        self._generator = torch.Generator("cpu").manual_seed(seed)
        self._priorities = torch.empty(0, dtype=torch.float64)
        self._rows: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        """Offer rows [n, ...]; those that stay are copied to the CPU as float32."""
        offered = torch.rand(rows.shape[0], generator=self._generator, dtype=torch.float64)
        if self._rows is None:
            self._rows = torch.empty(0, *rows.shape[1:], dtype=torch.float32)
        priorities = torch.cat([self._priorities, offered])
        kept = torch.topk(priorities, min(self._size, len(priorities)), largest=False).indices.sort().values
        held = len(self._priorities)
        chosen = (kept[kept >= held] - held).to(rows.device)
        fresh = rows.index_select(0, chosen).to("cpu", torch.float32)
        self._rows = torch.cat([self._rows[kept[kept < held]], fresh])
        self._priorities = priorities[kept]

    def rows(self) -> Tensor:
        """The sample so far, in the order of the stream: float32 [at most size, ...]."""
        if self._rows is None:
            raise ValueError("nothing was offered to the sample")
        return self._rows.clone()


class _Recorder:
    """Streams the statistics of one input tensor; registered as a forward pre-hook of one of its layers."""

    def __init__(self, size: int, seed: int, index: StepIndex) -> None:
        self._index = index
        self._reservoir = Reservoir(size, seed)
        self._absmax: Tensor | None = None
        self._ranges: dict[int, tuple[float, float]] = {}

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        rows, per_channel = _rows_and_channels(module, args[0].detach())
        low, high = (bound.float().cpu() for bound in per_channel.aminmax(dim=1))
        absmax = torch.maximum(-low, high)
        self._absmax = absmax if self._absmax is None else torch.maximum(self._absmax, absmax)
        step = self._index.value
        if step is None:
            raise RuntimeError("a layer ran outside a denoiser call of known timestep")
        lo, hi = self._ranges.get(step, (float("inf"), float("-inf")))
        self._ranges[step] = min(lo, float(low.min())), max(hi, float(high.max()))
        self._reservoir.add(rows)

    def finish(self, steps: int) -> InputStatistics:
        """Return the statistics as ordinary tensors; ValueError if the layer did not run at every step."""
        missing = [step for step in range(steps) if step not in self._ranges]
        if missing or self._absmax is None:
            raise ValueError(f"the layer did not run at steps {missing}")
        ranges = torch.tensor([self._ranges[step] for step in range(steps)], dtype=torch.float32)
        return InputStatistics(self._absmax.clone(), ranges, self._reservoir.rows())


def _rows_and_channels(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """An input as rows to sample from (tokens or maps) and as [channels, values]."""
    if isinstance(module, nn.Conv2d):
        return x, x.transpose(0, 1).flatten(1)
    tokens = x.reshape(-1, x.shape[-1])
    return tokens, tokens.T


def _row_shapes(
    pipeline: Any, card: ModelCard, layers: Mapping[str, nn.Module], prompts: Sequence[Prompt], seed: int
) -> dict[str, tuple[int, ...]]:
    """Shape of one row of each input group, from a run on one prompt that stops after the first step."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note(group: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            shapes[group] = tuple(_rows_and_channels(module, args[0])[0].shape[1:])

        return hook

    run = denoiser_call(pipeline, card, prompts[:1], seed)
    handles = [layer.register_forward_pre_hook(note(group)) for group, layer in layers.items()]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    idle = [group for group in layers if group not in shapes]
    if idle:
        raise ValueError(f"layers that do not run: {', '.join(idle)}")
    return shapes


def sample_sizes(row_shapes: Mapping[str, tuple[int, ...]], budget_bytes: int) -> dict[str, int]:
    """Return how many rows to keep of each input, so that all samples together stay within a budget.

    Args:
        row_shapes: shape of one row by input group: (channels,) or (channels, height, width).
        budget_bytes: for all samples together, as float32.

    Raises:
        ValueError: the budget does not hold one row of each.
    """
    row_bytes = {group: _FLOAT_BYTES * int(torch.Size(shape).numel()) for group, shape in row_shapes.items()}
    wanted = {group: TOKEN_ROWS if len(shape) == 1 else MAPS for group, shape in row_shapes.items()}
    spare = budget_bytes - sum(row_bytes.values())
    if spare < 0:
        raise ValueError(f"{budget_bytes} bytes do not hold one sample of each of {len(row_shapes)} inputs")
    more = sum((wanted[group] - 1) * row_bytes[group] for group in row_shapes)
    share = min(1.0, spare / more) if more else 1.0
    return {group: 1 + int((wanted[group] - 1) * share) for group in row_shapes}


def _groups(card: ModelCard, denoiser: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """The input group of each named layer; ValueError for a name that is no Linear or Conv2d."""
    known = layer_roles(card.family, denoiser)
    wanted = list(names)
    missing = [name for name in wanted if name not in known]
    if missing:
        raise ValueError(f"not a Linear or Conv2d of the denoiser: {', '.join(missing)}")
    return {name: input_group(name, known[name]) for name in wanted}


def record_calibration(
    pipeline: Any,
    card: ModelCard,
    names: Iterable[str],
    prompts: Sequence[Prompt],
    seed: int,
    budget_bytes: int = DEFAULT_BUDGET_BYTES,
) -> Calibration:
    """Generate `prompts` with the 16-bit model and record the inputs of the named layers.

    Inputs are recorded as the denoiser sees them: with guidance, both the captioned and the empty-caption
    half of the batch.

    Args:
        pipeline: as `harness.models.load.load_pipeline` returns it, not quantized.
        card: the model, with the sampling to calibrate for.
        names: module paths of the layers.
        prompts: 16-32 calibration prompts.
        seed: fixes the noise and the sample.
        budget_bytes: upper bound of the bytes of all samples together; the number of rows per layer shrinks
            evenly to keep it.

    Raises:
        ValueError: no prompts, an unknown layer, a layer that does not run, or a budget below one row each.
        CellError: state `nan`, when a prediction is not finite.
    """
    if not prompts:
        raise ValueError("calibration needs at least one prompt")
    denoiser: nn.Module = getattr(pipeline, card.denoiser)
    groups = _groups(card, denoiser, names)
    first = {group: name for name, group in reversed(groups.items())}
    layers = {group: denoiser.get_submodule(first[group]) for group in dict.fromkeys(groups.values())}
    sizes = sample_sizes(_row_shapes(pipeline, card, layers, prompts, seed), budget_bytes)
    index = StepIndex()
    recorders = {
        group: _Recorder(size, hash_seed("calibration", group, seed), index) for group, size in sizes.items()
    }
    handles = [layers[group].register_forward_pre_hook(recorder) for group, recorder in recorders.items()]
    try:
        for start in range(0, len(prompts), BATCH):
            sample(pipeline, card, prompts[start : start + BATCH], seed, "latent", index)
    finally:
        for handle in handles:
            handle.remove()
    steps = len(schedule(pipeline, card))
    statistics = {group: recorder.finish(steps) for group, recorder in recorders.items()}
    return Calibration(steps, statistics, groups)
