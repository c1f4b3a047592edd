"""Runs all checks of a method and yields what each found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from harness.check.checks import CHECKS, reason, stable_identity
from harness.check.evidence import Evidence
from harness.check.subjects import Subject, subjects
from harness.errors import UserError, not_installed
from harness.methods import registry
from harness.project import WORLD

BOTH = "both"


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        subject: the denoiser, `both` for what depends on none.
        check: its name.
        ok: whether the method passed.
        detail: figures when it did, the reason when not; one line.
    """

    subject: str
    check: str
    ok: bool
    detail: str


def check_method(name: str, overrides: Mapping[str, str]) -> Iterator[Finding]:
    """Try a method and yield one finding per check and denoiser, as soon as it is known.

    Args:
        name: a registered method.
        overrides: settings, as `--set` gives them.

    Raises:
        UserError: there is no such method or setting, its plugin could not be imported, or a library that it
            calls is not installed.
    """
    registry.configure(name, overrides)
    if missing := [library for library, version in WORLD.method(name, {}).libraries.items() if not version]:
        raise UserError(not_installed(missing[0]))
    yield _finding(BOTH, "settings", partial(stable_identity, name, overrides))
    yield from check_on(name, overrides, subjects())


def check_on(name: str, overrides: Mapping[str, str], tried: Sequence[Subject]) -> Iterator[Finding]:
    """Yield the findings on some denoisers, on one thread."""
    spec, config = registry.get(name), registry.configure(name, overrides)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for subject in tried:
            evidence = Evidence(spec, config, subject)
            for check, look in CHECKS.items():
                yield _finding(subject.name, check, partial(look, evidence))
    finally:
        torch.set_num_threads(threads)


def _finding(subject: str, check: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(subject, check, True, look())
    except Exception as error:  # a method may raise anything: that is a finding
        return Finding(subject, check, False, reason(error))
