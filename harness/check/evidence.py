"""One method tried on one denoiser: the quantizations that the checks look at, each made once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from harness.canonical import digest_json
from harness.check.subjects import Subject, SubjectTeacher
from harness.kernels.ledger import Ledger, build_ledger
from harness.methods.contract import LayerTarget, MethodConfig, MethodSpec, QuantizeJob
from harness.models.roles import hidden_width

TRIED_BITS = (2, 3, 4, 6)
USUAL_ACT_BITS = 8
_NETWORK = (
    "socket.socket.connect",
    "socket.socket.connect_ex",
    "socket.socket.sendto",
    "socket.create_connection",
    "socket.getaddrinfo",
)


class CheckFailedError(Exception):
    """A method does not keep what it must; the text says in one line what was found."""


@dataclass(frozen=True)
class Trial:
    """One quantization.

    Attributes:
        denoiser: quantized.
        targets: what the method was handed.
        ledger: of the denoiser.
        outputs: its predictions at every step.
        network: network functions the method called.
    """

    denoiser: nn.Module
    targets: tuple[LayerTarget, ...]
    ledger: Ledger
    outputs: Tensor
    network: tuple[str, ...]

    def state(self) -> dict[str, Tensor]:
        """Return all tensors by name."""
        return dict(self.denoiser.state_dict())


@dataclass
class Evidence:
    """What is known of a method with its settings on one subject."""

    spec: MethodSpec[Any]
    config: MethodConfig
    subject: Subject
    _trials: dict[tuple[int, int, bool], Trial] = field(default_factory=dict)

    @property
    def bits(self) -> list[int]:
        """Weight widths to try: those of 2, 3, 4 and 6 that the method declares, else all it declares."""
        declared = sorted(self.spec.weight_bits)
        return [bits for bits in TRIED_BITS if bits in declared] or declared

    @property
    def act_bits(self) -> int:
        """Activation width to try: 8 if declared, else the largest below 16, else 16."""
        if self.spec.weight_only:
            return 16
        low = [bits for bits in self.spec.act_bits if bits < 16]
        return USUAL_ACT_BITS if USUAL_ACT_BITS in low else max(low, default=16)

    @cached_property
    def reference(self) -> Tensor:
        """Predictions of the float denoiser."""
        return self.subject.outputs(self.subject.denoiser)

    def middle(self) -> Trial:
        """Return the trial at the middle width, which most checks look at."""
        return self.trial(self.bits[len(self.bits) // 2])

    def trial(self, bits: int, *, repeat: int = 0, damaged: bool = False) -> Trial:
        """Quantize once per combination.

        Args:
            bits: weight bits.
            repeat: number of the repetition; torch's and Python's global generators start elsewhere in each.
            damaged: whether the subject has dead and constant channels.

        Raises:
            CheckFailedError: the method changed its own settings.
            Exception: whatever the method raises.
        """
        key = (bits, repeat, damaged)
        if key not in self._trials:
            self._trials[key] = self._run(bits, repeat, damaged)
        return self._trials[key]

    def _run(self, bits: int, repeat: int, damaged: bool) -> Trial:
        subject = self.subject.damaged() if damaged else self.subject
        denoiser = subject.fresh()
        job = QuantizeJob(
            denoiser=denoiser,
            targets=subject.targets(bits, self.act_bits),
            calibration=subject.calibration if self.spec.needs_calibration else None,
            width=hidden_width(denoiser),
            teacher=SubjectTeacher(subject),
        )
        settings = digest_json(asdict(self.config))
        with torch.random.fork_rng(devices=[]), watched_network() as calls:
            torch.manual_seed(1000 + repeat)
            self.spec.quantize(job, self.config)
        if digest_json(asdict(self.config)) != settings:
            raise CheckFailedError("the method changed its own settings while it ran")
        ledger = build_ledger(denoiser, job.targets, job.notes)
        return Trial(denoiser, job.targets, ledger, subject.outputs(denoiser), tuple(calls))


@contextmanager
def watched_network() -> Iterator[list[str]]:
    """Refuse every use of the network and yield the names of the functions that were called."""
    calls: list[str] = []

    def refuse(name: str) -> Any:
        def refused(*args: object, **kwargs: object) -> None:
            calls.append(name)
            raise OSError(f"{name} is refused: a method must not use the network")

        return refused

    patches = [patch(name, refuse(name)) for name in _NETWORK]
    try:
        for one in patches:
            one.start()
        yield calls
    finally:
        for one in reversed(patches):
            one.stop()
