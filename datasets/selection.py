"""Which prompts of a set a protocol takes, in which order, and from which seeds their noise comes.

The published rules are those of the SVDQuant evaluation (https://arxiv.org/abs/2411.05007 and its code,
deepcompressor): the names in file order are shuffled by `random.Random(0)`, the first N are taken, and each
image's noise is seeded by a rolling hash of its name.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from harness.datasets.contract import Prompt, PromptSet
from harness.errors import UserError, unknown

Selection = Literal["nesting order", "shuffled by Random(0)"]
Seeds = Literal["sha256", "rolling hash", "shared"]

_MULTIPLIER, _MODULUS = 31, 1_000_000_007


def rolling_hash(name: str) -> int:
    """Return the polynomial rolling hash of a name: h = (31 h + code point) mod 1,000,000,007, from 0."""
    value = 0
    for character in name:
        value = (value * _MULTIPLIER + ord(character)) % _MODULUS
    return value


def order(prompts: PromptSet, selection: str, path: Path | None = None) -> list[Prompt]:
    """Return all prompts of a set in the order in which a protocol takes them.

    The first m of the first n are the first m: a larger N extends a smaller one. The published rule sorts
    the N chosen by name at the end, which changes the order of the table's rows and no image.

    Raises:
        UserError: the set's file is unusable, or the selection is none.
    """
    everything = prompts.prompts(prompts.count(path), path)
    if selection == "shuffled by Random(0)":
        random.Random(0).shuffle(everything)
    elif selection != "nesting order":
        raise unknown("selection", selection, get_args(Selection))
    return everything


def select(prompts: PromptSet, n: int, selection: str, path: Path | None = None) -> list[Prompt]:
    """Return the first `n` prompts in the protocol's order.

    Raises:
        UserError: the set has fewer, or its file is unusable.
    """
    if selection == "nesting order":  # spares a set without end the reading of all of it
        return prompts.prompts(n, path)
    found = order(prompts, selection, path)
    if n > len(found):
        raise UserError(f"{prompts.name} has {len(found)} prompts, not {n}")
    return found[:n]


def seeded(prompts: Sequence[Prompt], seeds: str, seed: int) -> list[Prompt]:
    """Return the prompts with the seed of their noise, where the protocol's rule is a published one.

    Args:
        prompts: as selected.
        seeds: `sha256`: the harness's own rule, from id, text and `seed`, left to `harness.noise`;
            `rolling hash`: of the id; `shared`: `seed` for every prompt, so that all start from one noise.
        seed: the protocol's.

    Raises:
        UserError: the rule is none.
    """
    if seeds == "sha256":
        return list(prompts)
    if seeds == "rolling hash":
        return [replace(prompt, seed=rolling_hash(prompt.id)) for prompt in prompts]
    if seeds == "shared":
        return [replace(prompt, seed=seed) for prompt in prompts]
    raise unknown("seed rule", seeds, get_args(Seeds))


def calibration_of(prompts: PromptSet, n: int, selection: str, path: Path | None = None) -> list[Prompt]:
    """Return the prompts of a set that are for calibration when the protocol names no set for it.

    The set's own where it has them; else the last `n` in selection order, so that they meet the evaluation
    prompts only when the set is too small for both (`harness.datasets.leaks` counts how many do).
    """
    own = prompts.calibration(n, path)
    return order(prompts, selection, path)[-n:] if own is None else own
