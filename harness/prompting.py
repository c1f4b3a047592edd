"""The prompts of a run: which are evaluated and which calibrated on, by the protocol's rules."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from harness.canonical import digest_file, digest_json
from harness.datasets.contract import Prompt, PromptSet
from harness.datasets.selection import calibration_of, seeded, select
from harness.protocols import EffectiveProtocol
from harness.world import MethodFacts, World

_DIGITS = 12
"""Hexadecimal digits of a prompt's digest that are kept: a set of a million has no two alike."""


def evaluation_prompts(
    prompts: PromptSet, n: int, protocol: EffectiveProtocol, path: Path | None
) -> list[Prompt]:
    """Return at least `n` prompts in whole blocks, or as many as the set has.

    A batch's composition must not depend on `n`, or a larger run could not reuse the last block.

    Raises:
        UserError: the set has fewer than `n`, or its file is unusable.
    """
    base = protocol.base
    select(prompts, n, base.selection, path)  # what the user asked for is what the message must name
    whole = math.ceil(n / base.block) * base.block
    found = select(prompts, min(whole, prompts.count(path)), base.selection, path)
    return seeded(found, base.seeds, protocol.seed)


def calibration_sets(
    protocol: EffectiveProtocol, sets: Mapping[str, PromptSet], methods: Iterable[MethodFacts], world: World
) -> dict[str, PromptSet]:
    """Return the set calibrated on for each evaluation set: the protocol's, else the evaluation set itself.

    The protocol's is left out when it is a file and no method calibrates: nobody then needs to have it.
    """
    name = protocol.base.calibration_dataset
    if name is None:
        return dict(sets)
    found = world.dataset(name)
    wanted = not found.takes_path or any(method.needs_calibration for method in methods)
    return dict.fromkeys(sets, found) if wanted else {}


def calibration_prompts(
    prompts: PromptSet | None, evaluated: str, protocol: EffectiveProtocol, path: Path | None
) -> list[Prompt]:
    """Return the prompts to calibrate on; none without a set.

    A set that is evaluated too gives prompts that are not evaluated, as far as it has them.
    """
    if prompts is None:
        return []
    base = protocol.base
    n = base.calibration_prompts
    if prompts.name == evaluated:
        found = calibration_of(prompts, n, base.selection, path)
    else:
        found = select(prompts, n, base.selection, path)
    return seeded(found, base.seeds, protocol.seed)


def prompt_digest(prompt: Prompt) -> str:
    """Return what a record calls a prompt: the start of the digest of all that its image depends on."""
    return digest_json(prompt.identity())[:_DIGITS]


def file_digest(prompts: PromptSet, path: Path) -> str:
    """Return the sha256 of the file that a prompt set is read from; empty when it reads none."""
    source = prompts.source(path)
    return "" if source is None else digest_file(source)
