"""The settings of the training stage, shared by the configs of all methods that train."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from harness.methods.contract import MethodConfig

Relation = Literal["off", "smoothed", "memory"]


@dataclass(frozen=True)
class TrainingConfig(MethodConfig):
    """Base of the config of a method that may be trained by distillation.

    Attributes:
        train_steps: optimiser steps; 0 is no training.
        train_relation: relation loss: `off`, `smoothed` (MPQ-DM), `memory` (MPQ-DMv2, a reconstruction).
        train_relation_weight: None is the published 100 (`smoothed`) or RDD's 0.1 (`memory`).
        train_window: consecutive sampling steps in a batch, over which `smoothed` averages.
        train_batch: trajectories in a batch.
        train_prompts: teacher trajectories, one in eight of them held out; fewer if the cache is full.
        train_cache_mib: bound of the recorded trajectories, in MiB.
        train_lora_rank: None is the rank rule of branches (`harness.methods.lowrank.rank_rule`), 0 no LoRA.
        train_lora_lr: learning rate of LoRA in units of the layer's mean weight scale.
        train_scale_lr: of weight scales, zero points and branch factors, relative to their size.
        train_act_lr: of stored activation scales and zero points, relative to their size.
        train_evaluations: how often the held-out loss is taken and the state stored.
        train_patience: evaluations without a better held-out loss after which training stops.
        train_checkpointing: recompute activations in the backward pass to save memory.
        train_memory_span: `memory` compares with pixels of at most so many steps away; None is all.
    """

    train_steps: int = 0
    train_relation: Relation = "smoothed"
    train_relation_weight: float | None = None
    train_window: int = 2
    train_batch: int = 2
    train_prompts: int = 64
    train_cache_mib: int = 256
    train_lora_rank: int | None = None
    train_lora_lr: float = 0.01
    train_scale_lr: float = 1e-3
    train_act_lr: float = 1e-3
    train_evaluations: int = 20
    train_patience: int = 8
    train_checkpointing: bool = False
    train_memory_span: int | None = None

    def __post_init__(self) -> None:
        """Check the training settings; raises ValueError."""
        least = {
            "train_steps": 0,
            "train_window": 2 if self.train_relation == "smoothed" else 1,
            "train_batch": 1,
            "train_prompts": 2,
            "train_cache_mib": 1,
            "train_lora_rank": 0,
            "train_evaluations": 1,
            "train_patience": 1,
            "train_relation_weight": 0,
            "train_lora_lr": 0,
            "train_scale_lr": 0,
            "train_act_lr": 0,
            "train_memory_span": 0,
        }
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and not smallest <= value < float("inf"):
                raise ValueError(f"{name} is at least {smallest}, not {value}")

    def training(self) -> dict[str, Any]:
        """Return the training settings alone, by name."""
        return {name: value for name, value in asdict(self).items() if name.startswith("train_")}
