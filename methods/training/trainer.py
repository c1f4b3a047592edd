"""Distils a quantized denoiser on its 16-bit self's own sampling trajectories, for any method.

    distiller = Distiller.of(job, config)      # None when config.train_steps is 0; records the teacher
    ...                                        # the method replaces every target by a packed layer
    if distiller is not None:
        distiller.run(job)                     # trains, and leaves packed layers again

Loss (EfficientDM, and MPQ-DM after it): the squared difference of the guided predictions, summed over the
values of an image, plus the relation loss. AdamW, learning rates falling linearly to zero. What a batch holds
follows from the seed and the step alone, so that an interrupted training goes on exactly.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor, nn

from harness.errors import CellError
from harness.methods.contract import QuantizeJob
from harness.methods.lowrank import rank_rule
from harness.methods.rounding import PLAIN_BITS
from harness.methods.training.relation import (
    CONTRAST_PIXELS,
    ENQUEUED_PIXELS,
    PixelQueue,
    as_pixels,
    memory_relation,
    smoothed_relation,
)
from harness.methods.training.settings import TrainingConfig
from harness.methods.training.state import Progress, read_state, write_curve, write_state
from harness.methods.training.student import Student
from harness.methods.training.trajectories import Batch, Trajectories, guided

HELD_OUT_SHARE = 8
"""One trajectory in so many is held out."""
RELATION_WEIGHT = {"smoothed": 100.0, "memory": 0.1}
LORA_DECAY = 0.01
EVALUATED_ROWS = 32


class Distiller:
    """The float layers and the teacher's trajectories, kept while a method replaces the layers."""

    def __init__(self, job: QuantizeJob, config: TrainingConfig) -> None:
        """Record the teacher. The job's denoiser must not be quantized yet.

        Raises:
            CellError: `unsupported`, when every layer is to stay at 8 bits: those are not trained.
            ValueError: the job has no teacher, or its schedule is shorter than the window.
        """
        if all(target.w_bits >= PLAIN_BITS for target in job.targets):
            raise CellError("unsupported", f"nothing to train: every layer stays at {PLAIN_BITS} bits")
        if job.teacher is None:
            raise ValueError("training needs the 16-bit model's trajectories, and the job has no teacher")
        self._config = config
        self._originals = {target.name: job.layer(target.name) for target in job.targets}
        relation = config.train_relation != "off"
        budget = config.train_cache_mib * 2**20
        self._teacher = job.teacher.record(config.train_prompts, budget, relation)
        if self._teacher.steps < config.train_window:
            raise ValueError(
                f"a window of {config.train_window} steps on a schedule of {self._teacher.steps}"
            )
        print(f"recorded {self._teacher.count} trajectories, {self._teacher.nbytes()} bytes", flush=True)

    @classmethod
    def of(cls, job: QuantizeJob, config: TrainingConfig) -> Self | None:
        """Return a distiller, or None when the config asks for no training."""
        return cls(job, config) if config.train_steps else None

    def run(self, job: QuantizeJob) -> None:
        """Train the job's packed denoiser and pack it again."""
        rank = self._config.train_lora_rank
        rank = rank_rule(job.width, job.embedded) if rank is None else rank
        student = Student(job, self._originals, rank)
        training = _Training(job, student, self._teacher, self._config)
        training.run()
        student.pack()


class _Training:
    """One training: parameters, optimiser, queue, progress."""

    def __init__(
        self, job: QuantizeJob, student: Student, teacher: Trajectories, config: TrainingConfig
    ) -> None:
        self._job, self._student, self._teacher, self._config = job, student, teacher, config
        self._device = teacher_device(job.denoiser)
        rates = student.parameters(config.train_lora_lr, config.train_scale_lr, config.train_act_lr)
        self._parameters = {name: parameter for name, (parameter, _) in rates.items()}
        groups = [
            {
                "params": [p],
                "lr": rate,
                "weight_decay": LORA_DECAY if name.endswith(("/down", "/up")) else 0.0,
            }
            for name, (p, rate) in rates.items()
        ]
        # A rate of its own makes every parameter a group: on a GPU one kernel each, not fifteen.
        self._fused = self._device.type == "cuda"
        self._optimiser = torch.optim.AdamW(groups, fused=self._fused)
        self._rates = [rate for _, rate in rates.values()]
        self._best = {name: p.detach().clone() for name, p in self._parameters.items()}
        held = max(1, teacher.count // HELD_OUT_SHARE)
        self._train_count = teacher.count - held
        self._held_out = torch.arange(self._train_count, teacher.count)
        self._queue: PixelQueue | None = None
        if config.train_relation == "memory" and teacher.features is not None:
            self._queue = PixelQueue(as_pixels(teacher.features[0, 0, :1]).shape[-1], device=self._device)
        self._progress = Progress()
        self._sums = torch.zeros(3, dtype=torch.float64)

    def run(self) -> None:
        """Train to the end, or until the held-out loss has not fallen for long; keep the best parameters."""
        total = self._config.train_steps
        every = max(1, total // self._config.train_evaluations)
        with torch.enable_grad(), self._prepared():
            identity = self._identity()
            if not self._resume(identity):
                self._evaluate()
            while self._progress.step < total and self._progress.stale < self._config.train_patience:
                self._step()
                if self._progress.step % every == 0 or self._progress.step == total:
                    self._evaluate()
                    self._store(identity)
        self._put(self._best)
        self._note()

    @contextlib.contextmanager
    def _prepared(self) -> Iterator[None]:
        """Switch gradient checkpointing on, if asked for, and catch the student's features."""
        denoiser: Any = self._job.denoiser
        self._caught: list[Tensor] = []
        layer = denoiser.get_submodule(self._teacher.feature_layer)

        def catch(_module: nn.Module, args: tuple[Any, ...]) -> None:
            self._caught.append(args[0])

        handle = layer.register_forward_pre_hook(catch)
        if self._config.train_checkpointing:
            denoiser.enable_gradient_checkpointing()
        try:
            yield
        finally:
            handle.remove()
            if self._config.train_checkpointing:
                denoiser.disable_gradient_checkpointing()

    def _step(self) -> None:
        step = self._progress.step
        generator = _generator(self._job.seed, step)
        config, teacher = self._config, self._teacher
        which = torch.randperm(self._train_count, generator=generator)[: config.train_batch]
        starts = teacher.steps - config.train_window + 1
        first = torch.randint(starts, (len(which),), generator=generator)
        batch = teacher.batch(which, first, config.train_window, self._device)
        for group, rate in zip(self._optimiser.param_groups, self._rates, strict=True):
            group["lr"] = rate * (1 - step / config.train_steps)
        self._optimiser.zero_grad(set_to_none=True)
        try:
            # On a GPU the layers multiply in bfloat16; grids and losses stay in float32.
            with torch.autocast("cuda", torch.bfloat16, enabled=self._device.type == "cuda"):
                prediction, features = self._predict(batch)
            error, per_image = self._prediction_loss(prediction, batch)
            relation = self._relation_loss(features, batch, per_image)
            loss = error + relation
            if not bool(torch.isfinite(loss)):
                raise FloatingPointError(f"the loss of training step {step} is not finite")
            loss.backward()  # type: ignore[no-untyped-call]
        finally:
            self._student.steps.value = None
        self._optimiser.step()
        if self._queue is not None and batch.features is not None:
            self._queue.enqueue(as_pixels(batch.features), batch.steps, ENQUEUED_PIXELS, generator)
        self._sums += torch.stack([loss, error, relation]).detach().double().cpu()
        self._progress.step += 1

    def _predict(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Run the student; the steps of the rows stay set, since checkpointing runs layers again."""
        self._student.steps.value = batch.steps
        self._caught.clear()
        output = self._job.denoiser(**batch.arguments)
        features = self._caught.pop()
        return (output if isinstance(output, Tensor) else output[0]), features

    def _prediction_loss(self, prediction: Tensor, batch: Batch) -> tuple[Tensor, int]:
        """Return the squared error of the guided prediction per image, and the values of an image."""
        channels = self._teacher.samples.shape[3]
        ours, theirs = (
            guided(p, batch.layout, self._teacher.guidance, channels) for p in (prediction, batch.predictions)
        )
        return (ours - theirs).square().sum() / len(ours), ours[0].numel()

    def _relation_loss(self, features: Tensor, batch: Batch, per_image: int) -> Tensor:
        """Return the weighted relation loss, in the units of the prediction loss."""
        kind, theirs = self._config.train_relation, batch.features
        if kind == "off" or theirs is None:
            return features.new_zeros(())
        weight = self._config.train_relation_weight
        weight = RELATION_WEIGHT[kind] if weight is None else weight
        ours, theirs = as_pixels(features), as_pixels(theirs)
        if kind == "smoothed":
            images = (-1, batch.layout[2], *ours.shape[1:])
            return weight * smoothed_relation(ours.reshape(images), theirs.reshape(images))
        if self._queue is None or self._queue.empty():
            return features.new_zeros(())
        memory = self._queue.contrast(CONTRAST_PIXELS)
        span = self._config.train_memory_span
        # RDD weighs a mean over pixels against a mean squared error; ours is a sum over an image's values.
        return weight * per_image * memory_relation(ours, theirs, batch.steps, memory, span=span)

    def _evaluate(self) -> None:
        """Take the held-out loss, remember the best parameters, add a row to the curve."""
        progress = self._progress
        loss = self._held_out_loss()
        improved = loss < progress.best
        if improved:
            progress.best, progress.best_step = loss, progress.step
            self._best = {name: p.detach().clone() for name, p in self._parameters.items()}
        progress.stale = 0 if improved else progress.stale + 1
        since = progress.step - (progress.curve[-1][0] if progress.curve else 0)
        means = (self._sums / since).tolist() if since else [float("nan")] * 3
        self._sums.zero_()
        progress.curve.append([float(progress.step), *means, loss])
        print(
            f"training step {progress.step}/{self._config.train_steps}: loss {means[0]:.5g} "
            f"(prediction {means[1]:.5g}, relation {means[2]:.5g}), held out {loss:.5g}",
            flush=True,
        )

    @torch.no_grad()
    def _held_out_loss(self) -> float:
        """Return the squared error of the guided prediction per image on held-out trajectories, all steps."""
        teacher = self._teacher
        total, images = 0.0, 0
        window = max(1, min(teacher.steps, EVALUATED_ROWS // teacher.halves))
        for which in self._held_out:
            for first in range(0, teacher.steps, window):
                length = min(window, teacher.steps - first)
                batch = teacher.batch(which[None], torch.tensor([first]), length, self._device)
                try:
                    error, _ = self._prediction_loss(self._predict(batch)[0], batch)
                finally:
                    self._student.steps.value = None
                total, images = total + float(error) * length, images + length
        if not math.isfinite(total):
            raise FloatingPointError("the held-out loss is not finite")
        return total / images

    def _put(self, values: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(values[name])

    def _state(self) -> dict[str, Tensor]:
        """Return parameters, best parameters, moments and queue by name; zeros before the first step."""
        found: dict[str, Tensor] = {}
        for name, parameter in self._parameters.items():
            held = self._optimiser.state[parameter]
            found[f"now/{name}"], found[f"best/{name}"] = parameter, self._best[name]
            for moment in ("exp_avg", "exp_avg_sq"):
                found[f"{moment}/{name}"] = held.get(moment, torch.zeros_like(parameter))
        if self._queue is not None:
            found["queue/pixels"], found["queue/tags"] = self._queue.pixels, self._queue.tags
        return found

    def _store(self, identity: str) -> None:
        if self._job.workspace is None:
            return
        if self._queue is not None:
            self._progress.position = self._queue.position
        write_state(self._job.workspace, identity, self._progress, self._state())
        write_curve(self._job.workspace, self._progress.curve)

    def _resume(self, identity: str) -> bool:
        """Take up a stored state; return whether there was one."""
        if self._job.workspace is None:
            return False
        held = read_state(self._job.workspace, identity, self._state())
        if held is None:
            return False
        self._progress, tensors = held
        self._best = {name: tensors[f"best/{name}"].to(self._device) for name in self._parameters}
        self._put({name: tensors[f"now/{name}"] for name in self._parameters})
        for name, parameter in self._parameters.items():
            self._optimiser.state[parameter] = {
                "step": torch.tensor(
                    float(self._progress.step), device=self._device if self._fused else None
                ),
                "exp_avg": tensors[f"exp_avg/{name}"].to(self._device),
                "exp_avg_sq": tensors[f"exp_avg_sq/{name}"].to(self._device),
            }
        if self._queue is not None:
            self._queue.pixels = tensors["queue/pixels"].to(self._device)
            self._queue.tags = tensors["queue/tags"].to(self._device)
            self._queue.position = self._progress.position
        print(f"training goes on at step {self._progress.step}", flush=True)
        return True

    def _identity(self) -> str:
        """Return the digest of what is trained on what: settings, teacher, and the student's start."""
        digest = hashlib.sha256(json.dumps(self._config.training(), sort_keys=True).encode())
        digest.update(f"{self._teacher.digest()} {self._job.seed} {self._device.type}".encode())
        for name, layer in self._student.layers.items():
            digest.update(name.encode())
            for tensor in (layer.base, *(p for p in layer.parameters() if p.requires_grad)):
                digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _note(self) -> None:
        """Leave in the ledger how the training ended."""
        progress = self._progress
        start = progress.curve[0][-1]
        for name in self._student.layers:
            self._job.note(name, trained_steps=progress.best_step)
        gain = 1 - progress.best / start if start > 0 else 0.0
        print(
            f"training ends at step {progress.step}; best {progress.best_step}, held-out gain {gain:.4f}",
            flush=True,
        )


def teacher_device(module: nn.Module) -> torch.device:
    """Return the device of a module's first parameter or buffer."""
    tensors = [*module.parameters(), *module.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")


def _generator(seed: int, step: int) -> torch.Generator:
    """Return a generator that depends on the seed and the step alone."""
    mixed = hashlib.sha256(f"training batch {seed} {step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(mixed[:8], "big") >> 1)
