"""Relation distillation: the student's features relate to one another as the teacher's do.

* `smoothed_relation`: MPQ-DM's time-smoothed relation distillation (AAAI 2025; read from a description of the
  paper and from the released code).
* `memory_relation` with `PixelQueue`: MPQ-DMv2's memory-based temporal relation distillation, a
  reconstruction from the first author's earlier relational distillation (RDD): no formula of it is public.

Both take features as [rows, positions, channels]; `as_pixels` brings maps into that order.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

QUEUE_SIZE = 20_000
CONTRAST_PIXELS = 4096
ENQUEUED_PIXELS = 128
TEMPERATURE = 0.1
EMPTY = -1
"""Tag of a place of the queue that nothing was put in yet."""


def as_pixels(features: Tensor) -> Tensor:
    """Return features as [rows, positions, channels].

    Args:
        features: tokens [rows, positions, channels] or maps [rows, channels, height, width]. A map's channel
            axis is moved behind its positions before the two are merged: a plain view would mix pixels of
            different images.

    Raises:
        ValueError: neither.
    """
    if features.dim() == 4:
        return features.flatten(2).transpose(1, 2)
    if features.dim() != 3:
        raise ValueError(f"features of shape {tuple(features.shape)} are neither tokens nor maps")
    return features


def smoothed_relation(student: Tensor, teacher: Tensor) -> Tensor:
    """KL divergence of the relations between positions, of features averaged over consecutive steps.

    With f the mean over steps, normalised over channels, and A = f f^T: sum over rows and images of
    KL(softmax(A_teacher) || softmax(A_student)), rows of A softened at temperature 1.

    Args:
        student: [images, steps, positions, channels].
        teacher: the same shape.

    Returns:
        A scalar: the sum over positions, averaged over images.
    """
    relations = []
    for features in (student, teacher):
        unit = F.normalize(features.float().mean(dim=1), dim=-1)
        relations.append(F.log_softmax(unit @ unit.transpose(1, 2), dim=-1))
    ours, theirs = relations
    return F.kl_div(ours, theirs, reduction="sum", log_target=True) / len(student)


class PixelQueue:
    """A ring of teacher pixels, each with the sampling step it was seen at.

    Attributes:
        pixels: float32 [size, channels], of unit length where filled.
        tags: int64 [size], the sampling step, or `EMPTY`.
        position: where the next pixel goes.
    """

    def __init__(self, channels: int, size: int = QUEUE_SIZE, device: torch.device | None = None) -> None:
        """Build an empty ring."""
        self.pixels = torch.zeros(size, channels, device=device)
        self.tags = torch.full((size,), EMPTY, dtype=torch.int64, device=device)
        self.position = 0

    def empty(self) -> bool:
        """Whether nothing was put in yet."""
        return bool((self.tags == EMPTY).all())

    def enqueue(self, features: Tensor, steps: Tensor, count: int, generator: torch.Generator) -> None:
        """Put `count` randomly chosen pixels in the places of the oldest.

        Args:
            features: teacher features [rows, positions, channels].
            steps: int64 [rows], the sampling step of each row.
            count: how many; all, if there are fewer.
            generator: draws them (a CPU generator).
        """
        pixels = F.normalize(features.detach().float(), dim=-1).flatten(0, 1)
        tags = steps.repeat_interleave(features.shape[1])
        count = min(count, len(pixels), len(self.tags))
        chosen = torch.randperm(len(pixels), generator=generator)[:count].to(pixels.device)
        places = (self.position + torch.arange(count, device=pixels.device)) % len(self.tags)
        self.pixels[places] = pixels[chosen]
        self.tags[places] = tags[chosen]
        self.position = (self.position + count) % len(self.tags)

    def contrast(self, count: int) -> tuple[Tensor, Tensor]:
        """Return pixels of all the steps the ring remembers, evenly spaced in the order of their steps.

        So every step has as large a share of the contrast as of the ring.

        Args:
            count: how many; all that are filled, if there are fewer.

        Returns:
            Pixels [k, channels] and their steps int64 [k].
        """
        filled = torch.nonzero(self.tags != EMPTY).flatten()
        ordered = filled[torch.argsort(self.tags[filled], stable=True)]
        count = min(count, len(ordered))
        spaced = torch.arange(count, device=ordered.device) * len(ordered) // max(count, 1)
        return self.pixels[ordered[spaced]], self.tags[ordered[spaced]]


def memory_relation(
    student: Tensor,
    teacher: Tensor,
    steps: Tensor,
    memory: tuple[Tensor, Tensor],
    *,
    span: int | None = None,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """KL divergence of the relations between an image's positions and remembered teacher pixels.

    With f of unit length and K the memory: KL(softmax(f_teacher K^T / tau) || softmax(f_student K^T / tau)).

    Args:
        student: [rows, positions, channels].
        teacher: the same shape.
        steps: int64 [rows], the sampling step of each row.
        memory: pixels [k, channels] of unit length and their steps int64 [k].
        span: a row is compared with pixels of at most so many steps away; None for all.
        temperature: tau.

    Returns:
        A scalar: the mean over rows and positions; rows without a pixel in their span count as 0.
    """
    pixels, tags = memory
    shown = torch.ones(len(steps), len(tags), dtype=torch.bool, device=student.device)
    if span is not None:
        shown = (tags[None, :] - steps[:, None]).abs() <= span
    ours, theirs = ((F.normalize(f.float(), dim=-1) @ pixels.T / temperature) for f in (student, teacher))
    total = ours.new_zeros(())
    for row, columns in enumerate(shown):
        if bool(columns.any()):
            log_ours = F.log_softmax(ours[row][:, columns], dim=-1)
            log_theirs = F.log_softmax(theirs[row][:, columns], dim=-1)
            total = total + F.kl_div(log_ours, log_theirs, reduction="sum", log_target=True)
    return total / (student.shape[0] * student.shape[1])
