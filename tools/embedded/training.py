"""Optimisation shared by every stage: AdamW, an average of the weights, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from embedded.checkpoint import Checkpoint, Progress, Stream
from embedded.run import Limit, Run


class Ema:
    """Exponential moving average of the parameters, with a warm-up of its decay."""

    def __init__(self, modules: Sequence[nn.Module], decay: float) -> None:
        self.live: list[Tensor] = [p for m in modules for p in m.parameters()]
        self.shadow = [p.detach().clone() for p in self.live]
        self.decay, self.count = decay, 0

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the live parameters: update n has decay min(decay, (1 + n) / (10 + n))."""
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        torch._foreach_lerp_(self.shadow, self.live, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange live and averaged values."""
        for live, shadow in zip(self.live, self.shadow, strict=True):
            keep = live.detach().clone()
            live.copy_(shadow)
            shadow.copy_(keep)

    def state_dict(self) -> dict[str, Any]:
        """Return the averages and how many updates they are of."""
        return {"shadow": self.shadow, "count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Go on from earlier averages."""
        for shadow, kept in zip(self.shadow, state_dict["shadow"], strict=True):
            shadow.copy_(kept)
        self.count = state_dict["count"]


class Recipe(NamedTuple):
    """How to optimise: the stage, for how long, the highest learning rate and the decay of the average.

    `phase` tells optimisations of the same stage apart.
    """

    stage: str
    limit: Limit
    rate: float
    decay: float
    phase: str = ""


def optimise(
    run: Run,
    recipe: Recipe,
    modules: Sequence[nn.Module],
    loss: Callable[[], Tensor],
    streams: Sequence[Stream],
) -> dict[str, Any]:
    """AdamW with warm-up and cosine decay; leaves the averaged weights in `modules`.

    The number of steps is settled once compilation is over, from the time that some steps took; it is
    returned with the loss curve, so that the same training can be asked for again exactly.

    From then on a checkpoint is written now and then, and one at the end. Where the same optimisation was
    interrupted, it goes on from there. `loss` draws from `streams` and returns a scalar.
    """
    parameters = [p for m in modules for p in m.parameters()]
    optimiser = torch.optim.AdamW(
        parameters, lr=recipe.rate, betas=(0.9, 0.99), weight_decay=0.01, fused=run.on_gpu
    )
    ema = Ema(modules, recipe.decay)
    checkpoint = Checkpoint(
        run.checkpoint_path(recipe.stage, recipe.phase),
        {"settings": vars(run.settings), "start": str(run.start)},
        [*modules, optimiser, ema],
        [*run.default_generators(), *streams],
    )
    progress = checkpoint.load() or Progress(recipe.limit.steps)

    def take_step() -> Tensor:
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate * warmed_cosine(progress)
        with run.autocast():
            value = loss()
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(value)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        ema.update()
        return value.detach()

    _take_steps(run, recipe, progress, checkpoint, take_step)
    ema.swap()
    return {"steps": progress.steps, "loss_every": 50, "loss": [round(v.item(), 5) for v in progress.losses]}


def warmed_cosine(progress: Progress) -> float:
    """Factor of the learning rate: up over 200 steps, then down along a cosine."""
    falling = 0.5 * (1 + math.cos(math.pi * progress.step / progress.steps)) + 1e-3
    return min((progress.step + 1) / 200, falling)


def _take_steps(
    run: Run, recipe: Recipe, progress: Progress, checkpoint: Checkpoint, take_step: Callable[[], Tensor]
) -> None:
    """Take the steps that are left; settle how many, report and write checkpoints on the way."""
    label, limit = f"{recipe.stage} {recipe.phase}".rstrip(), recipe.limit
    start, written, settled = time.time() - progress.seconds, time.time(), 0.0
    while progress.step < progress.steps:
        step = progress.step
        if step == limit.settle:
            settled = time.time()
        if step == 2 * limit.settle:
            left = max(limit.seconds - (time.time() - start), 0.0)
            fitting = int(left / max((time.time() - settled) / limit.settle, 1e-6))
            progress.steps = min(progress.steps, step + fitting)
            if progress.steps == step:
                break
        value = take_step()
        if step % 50 == 0:
            progress.losses.append(value)
            if step % 500 == 0 or step == 300:
                seconds = time.time() - start
                print(f"{label} {step}/{progress.steps} loss {value.item():.5f} {seconds:.0f}s", flush=True)
        progress.step, progress.seconds = step + 1, time.time() - start
        # Not before the number of steps is settled: compiling again would spoil the timing.
        if progress.step > 2 * limit.settle and time.time() - written >= run.checkpoint_seconds:
            checkpoint.save(progress)
            written = time.time()
    checkpoint.save(progress)
