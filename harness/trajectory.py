"""Records the trajectories a method distils from: the unquantized model sampling by itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from harness.datasets.contract import Prompt
from harness.generate import sample
from harness.kernels.activations import StepIndex
from harness.methods.training.trajectories import Trajectories, leaves
from harness.models.card import ModelCard
from harness.models.roles import layer_roles
from harness.noise import hash_seed

BATCH = 16
"""Prompts sampled together."""
FEWEST = 2
"""Trajectories: one to learn from, one held out."""
PROMPTS_FIRST = ("DiTPipeline",)
"""Pipelines whose denoiser is handed the prompts' rows before those of the empty condition."""


class PipelineTeacher:
    """Samples from a pipeline whose denoiser is not quantized yet: a `harness.methods` `Teacher`."""

    def __init__(
        self, pipeline: Any, card: ModelCard, prompts: Callable[[int], Sequence[Prompt]], seed: int
    ) -> None:
        """Remember what to sample from.

        Args:
            pipeline: as `harness.models.load.load_pipeline` returns it.
            card: the model, with the sampling to distil for.
            prompts: returns so many prompts that no image of the evaluation is made from.
            seed: the protocol's seed; the noise is other than that of calibration and evaluation.
        """
        self._pipeline, self._card, self._prompts, self._seed = pipeline, card, prompts, seed

    def record(self, count: int, budget_bytes: int, features: bool) -> Trajectories:
        """Sample trajectories; see `harness.methods.training.trajectories.Teacher`.

        Raises:
            ValueError: the budget does not hold two trajectories, an argument of the denoiser changes from
                step to step, or the model has no final projection.
        """
        prompts = list(self._prompts(count))
        parts = [self._batch(prompts[:1], features)]
        fits = budget_bytes // parts[0].nbytes()
        if fits < FEWEST:
            raise ValueError(
                f"a cache of {budget_bytes} bytes does not hold {FEWEST} trajectories "
                f"of {parts[0].nbytes()} bytes"
            )
        kept = prompts[: min(len(prompts), fits)]
        for start in range(1, len(kept), BATCH):
            parts.append(self._batch(kept[start : start + BATCH], features))
        return _joined(parts)

    def _batch(self, prompts: Sequence[Prompt], features: bool) -> Trajectories:
        denoiser: nn.Module = getattr(self._pipeline, self._card.denoiser)
        final = [n for n, role in layer_roles(self._card.family, denoiser).items() if role == "final"]
        if not final:
            raise ValueError(f"{self._card.name} has no final projection")
        recorder = _Recorder(denoiser, len(prompts), self._card.pipeline in PROMPTS_FIRST)
        index = StepIndex()
        handles = [denoiser.register_forward_hook(recorder.after, with_kwargs=True)]
        if features:
            handles.append(denoiser.get_submodule(final[-1]).register_forward_pre_hook(recorder.feature))
        try:
            seed = hash_seed("training", self._seed)
            sample(self._pipeline, self._card, prompts, seed, "latent", index)
        finally:
            for handle in handles:
                handle.remove()
        return recorder.trajectories(self._card.sampling.guidance, final[-1])


class _Recorder:
    """Takes down what goes into the denoiser and what comes out.

    A scheduler that calls the denoiser twice at one noise level (PNDM) makes one step: its first call counts.
    """

    def __init__(self, denoiser: nn.Module, count: int, prompts_first: bool) -> None:
        self._signature = inspect.signature(denoiser.forward)
        self._count, self._prompts_first = count, prompts_first
        self._name = next(iter(self._signature.parameters))
        self._fixed: dict[str, Any] = {}
        self._timesteps: list[Tensor] = []
        self._samples: list[Tensor] = []
        self._predictions: list[Tensor] = []
        self._features: list[Tensor] = []

    def feature(self, _module: nn.Module, args: tuple[Any, ...]) -> None:
        self._features.append(_kept(args[0].to(torch.float16)))

    def after(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        arguments = dict(self._signature.bind(*args, **kwargs).arguments)
        timestep = _kept(torch.as_tensor(arguments.pop("timestep")).reshape(-1)[0])
        if self._timesteps and torch.equal(timestep, self._timesteps[-1]):
            del self._features[len(self._samples) :]
            return
        self._timesteps.append(timestep)
        self._samples.append(_kept(arguments.pop(self._name)))
        self._predictions.append(_kept(output if isinstance(output, Tensor) else output[0]))
        arguments["return_dict"] = False
        fixed = {k: _kept(v) if isinstance(v, Tensor) else v for k, v in leaves(arguments).items()}
        self._fixed = self._fixed or fixed
        for name in fixed.keys() | self._fixed.keys():
            if not _same(fixed.get(name), self._fixed.get(name)):
                raise ValueError(f"the denoiser's argument {name!r} changes along a trajectory")

    def trajectories(self, guidance: float, feature_layer: str) -> Trajectories:
        rows = len(self._samples[0])
        halves, rest = divmod(rows, self._count)
        if rest or halves not in {1, 2}:
            raise ValueError(f"{rows} rows of the denoiser for {self._count} prompts")

        def by_trajectory(values: Tensor) -> Tensor:
            split = values.reshape(halves, self._count, *values.shape[1:])
            ordered = split.flip(0) if self._prompts_first else split
            return ordered.transpose(0, 1).contiguous()

        def stacked(values: list[Tensor]) -> Tensor:
            return torch.stack([by_trajectory(v) for v in values], dim=2)

        features = stacked(self._features) if self._features else None
        if features is not None and not bool(torch.isfinite(features).all()):
            raise ValueError("the features before the final projection are too large for 16 bits")
        of_rows = {n: v for n, v in self._fixed.items() if isinstance(v, Tensor) and v.shape[:1] == (rows,)}
        return Trajectories(
            sample_name=self._name,
            timesteps=torch.stack(self._timesteps),
            guidance=guidance,
            samples=stacked(self._samples),
            predictions=stacked(self._predictions),
            features=features,
            feature_layer=feature_layer,
            conditions={name: by_trajectory(value) for name, value in of_rows.items()},
            constants={name: value for name, value in self._fixed.items() if name not in of_rows},
        )


def _kept(values: Tensor) -> Tensor:
    """A copy on the CPU that a backward pass may go through: those of inference mode may not."""
    with torch.inference_mode(False):
        return torch.empty(values.shape, dtype=values.dtype).copy_(values.detach())


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return torch.equal(left, right)
    return type(left) is type(right) and bool(left == right)


def _joined(parts: Sequence[Trajectories]) -> Trajectories:
    """All trajectories of batches of one model as one record."""
    first = parts[0]
    features = None
    if first.features is not None:
        features = torch.cat([part.features for part in parts if part.features is not None])
    for part in parts:
        if not torch.equal(part.timesteps, first.timesteps):
            raise ValueError("two batches were sampled on different schedules")
    return Trajectories(
        sample_name=first.sample_name,
        timesteps=first.timesteps,
        guidance=first.guidance,
        samples=torch.cat([part.samples for part in parts]),
        predictions=torch.cat([part.predictions for part in parts]),
        features=features,
        feature_layer=first.feature_layer,
        conditions={n: torch.cat([part.conditions[n] for part in parts]) for n in first.conditions},
        constants=first.constants,
    )
