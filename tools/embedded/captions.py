"""Captioned scenes of the training split, and what their text must be read as."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.datasets.scenes.grammar import caption
from harness.datasets.scenes.render import SceneBatch, batch_scenes
from harness.datasets.scenes.world import GRID, SHAPES, Scene, scenes

CHUNK = 4000


def training_scenes(seed: str, count: int) -> list[Scene]:
    """Return the first scenes of a seed that are not held out."""
    return list(islice(scenes(seed, held_out=False), count))


def _captioned(job: tuple[str, int]) -> tuple[list[str], dict[str, np.ndarray]]:
    """Captions of a job's scenes, and the scenes as arrays; for one worker."""
    seed, count = job
    phrasing, drawn = random.Random(f"{seed} phrasing"), training_scenes(seed, count)
    columns = vars(batch_scenes(drawn, f"{seed} jitter"))
    texts = [caption(scene, phrasing) for scene in drawn]
    return texts, {name: value.numpy() for name, value in columns.items()}


def scene_jobs(count: int) -> list[tuple[str, int]]:
    """Cut `count` scenes into jobs: seed and number of scenes."""
    return [(f"train-{i}", min(CHUNK, count - at)) for i, at in enumerate(range(0, count, CHUNK))]


def _each(function: Callable[[Any], Any], jobs: Sequence[Any]) -> list[Any]:
    """Results of `function` for `jobs`, by all cores."""
    # Forked, so that no worker has to import everything again; workers leave the GPU alone.
    with multiprocessing.get_context("fork").Pool(initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return pool.map(function, jobs, chunksize=1)


def captioned_scenes(count: int) -> tuple[list[str], SceneBatch]:
    """Training captions and scenes, made by all cores; the same whatever their number."""
    made = _each(_captioned, scene_jobs(count))
    texts = [text for part, _ in made for text in part]
    columns = {name: np.concatenate([columns[name] for _, columns in made]) for name in made[0][1]}
    return texts, SceneBatch(**{name: torch.from_numpy(value) for name, value in columns.items()})


def _tokenized(tokenizer: Any, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask of some captions; for one worker."""
    encoded = tokenizer(texts, padding="max_length", truncation=True, return_tensors="np")
    return encoded.input_ids.astype(np.int16), encoded.attention_mask.astype(np.bool_)


def tokenized(tokenizer: Any, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Ids int16 [N, L] and mask bool [N, L], False at the padding, of captions; made by all cores."""
    made = _each(partial(_tokenized, tokenizer), [texts[i : i + CHUNK] for i in range(0, len(texts), CHUNK)])
    ids, mask = (torch.from_numpy(np.concatenate(part)) for part in zip(*made, strict=True))
    return ids, mask


def scene_labels(batch: SceneBatch) -> Tensor:
    """What `Comprehension` reads: int64 [N, 3, 8]; relations are those to the object a caption names.

    Per object, in order of mention: shape (len(SHAPES) where there is none), colour, texture, size, and 0/1
    for left, right, above, below. A caption relates the first object to the second and the third to the
    second; the second is labelled with the converse of either.
    """
    row, column, there = batch.cell // GRID, batch.cell % GRID, batch.shape >= 0

    def relation(i: int, j: int) -> Tensor:
        same_row, same_column = row[:, i] == row[:, j], column[:, i] == column[:, j]
        stated = [
            same_row & (column[:, i] < column[:, j]), same_row & (column[:, i] > column[:, j]),
            same_column & (row[:, i] < row[:, j]), same_column & (row[:, i] > row[:, j]),
        ]  # fmt: skip
        return torch.stack(stated, 1) & (there[:, i] & there[:, j])[:, None]

    relations = torch.stack([relation(0, 1), relation(1, 0) | relation(1, 2), relation(2, 1)], 1).long()
    shape = torch.where(there, batch.shape, len(SHAPES))
    attributes = torch.stack([shape, batch.colour, batch.texture, batch.size], -1)
    return torch.cat([attributes, relations], -1)
