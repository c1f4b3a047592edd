"""The gate: compare a run with a baseline, and generate prompts until it can be told which way it went."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from rich.console import Console

from harness import run as runner
from harness.errors import UserError, unknown
from harness.metrics import METRICS
from harness.plan import Cell, Plan
from harness.prompting import prompt_digest
from harness.remake import fixes_seed, settings_of
from harness.reports.gate import verdict as verdicts
from harness.reports.gate.sides import Name, by_name, read_side
from harness.reports.gate.verdict import CellVerdict, Terms
from harness.reports.record import Record
from harness.request import REFERENCE, Request
from harness.store import RunStore


@dataclass(frozen=True)
class GateRequest:
    """What the user asked for, as typed.

    Attributes:
        run: the run to be judged; with `generate` it need not exist.
        baseline: a run folder or a file of records.
        noise: the baseline's cells made with another batch size or backend, or None.
        margins: `METRIC=VALUE` each.
        metrics: names of the metrics compared.
        alpha: chance that the gate fails wrongly.
        generate: whether missing prompts are generated.
        costs: whether memory and latency count.
        latency_bound: growth of the step's time that is let through.
        options: device, workers and paths for generating.
    """

    run: Path
    baseline: Path
    noise: Path | None = None
    margins: tuple[str, ...] = ()
    metrics: tuple[str, ...] = verdicts.METRICS
    alpha: float = verdicts.ALPHA
    generate: bool = True
    costs: bool = True
    latency_bound: float = 0.10
    options: Request = field(default_factory=Request)


def gate(request: GateRequest, console: Console) -> list[CellVerdict]:
    """Judge a run, generating more prompts of undecided cells at each look.

    Raises:
        UserError: a side cannot be read, the two were made by different protocols, or an option is wrong.
    """
    terms = terms_of(request)
    base = _side(request.baseline, "the baseline")
    if not base:
        raise UserError(f"{request.baseline} holds no record")
    noise = {} if request.noise is None else _side(request.noise, "the noise floor")
    if not (request.generate or request.run.exists()):
        raise UserError(f"{request.run} does not exist; leave --no-generate out to make it")
    made: set[str] = set()
    found = _judge(request, base, noise, terms, made)
    while request.generate:
        looks = {one.name: one.wanted for one in found if one.wanted is not None}
        if not looks:
            break
        look = min(looks.values())
        short = {name for name, wanted in looks.items() if wanted == look}
        made |= generate(request, base, short, look, console)
        before, found = found, _judge(request, base, noise, terms, made)
        if found == before:  # what was missing could not be made, and is not there next time either
            break
    return found


def terms_of(request: GateRequest) -> Terms:
    """Check the options that say what is compared.

    Raises:
        UserError: a metric is unknown or has no value per prompt, or a number is out of range.
    """
    for name in request.metrics:
        if name not in METRICS:
            raise unknown("metric", name, METRICS)
    margins: dict[str, float] = {}
    for text in request.margins:
        name, equals, value = text.partition("=")
        if name not in METRICS:
            raise unknown("metric", name, METRICS)
        try:
            margins[name] = float(value)
        except ValueError:
            margins[name] = math.nan
        if not (equals and 0.0 <= margins[name] < math.inf):
            raise UserError(f"--margin {text!r} is not METRIC=NUMBER with a number of at least 0")
    if not 0.0 < request.alpha <= 0.5:
        raise UserError(f"--alpha {request.alpha:g}: give a number above 0 and at most 0.5")
    if not (math.isfinite(request.latency_bound) and request.latency_bound >= 0.0):
        raise UserError(f"--latency-bound {request.latency_bound:g}: give a number of at least 0")
    better = {name: METRICS[name].better for name in request.metrics}
    return Terms(better, margins, request.alpha, request.costs, request.latency_bound)


def _side(path: Path, where: str, keys: Iterable[str] = ()) -> dict[Name, Record]:
    try:
        return by_name(read_side(path), f"{where} {path}", keys)
    except ValueError as error:
        raise UserError(str(error)) from error


def _judge(
    request: GateRequest,
    base: Mapping[Name, Record],
    noise: Mapping[Name, Record],
    terms: Terms,
    made: set[str],
) -> list[CellVerdict]:
    there = (request.run / "cells").is_dir() or request.run.is_file()
    new = _side(request.run, "the run", made) if there else {}
    try:
        verdicts.check_sides(new, base, noise)
    except ValueError as error:
        raise UserError(str(error)) from error
    return verdicts.judge(new, base, noise, terms)


def generate(
    request: GateRequest, base: Mapping[Name, Record], short: set[Name], look: int, console: Console
) -> set[str]:
    """Let the run hold at least `look` prompts of the cells that are short of them; return their keys.

    Cells of different settings of one method cannot share a request; the others do.
    """
    keys: set[str] = set()
    for settings in dict.fromkeys(settings_of(base[name].identity) for name in base if name in short):
        group = {name for name in short if settings_of(base[name].identity) == settings}
        asked = _request(request, [base[name] for name in base if name in group], settings, look)
        _check_protocol(asked, base)

        def wanted(cell: Cell, group: set[Name] = group) -> bool:
            return Name(*(getattr(cell.identity, part) for part in Name._fields)) in group

        made = runner.extend(asked, console, wanted, partial(_check_prompts, base))
        keys |= {record.identity.cell for record in made}
    return keys


def _request(
    request: GateRequest, records: Sequence[Record], settings: tuple[str, ...], look: int
) -> Request:
    identities = [record.identity for record in records]
    first = identities[0]
    quantized = [one for one in identities if one.method != REFERENCE]
    bits = dict.fromkeys(f"w{one.wbits}a{one.abits}" for one in quantized)
    return replace(
        request.options,
        models=tuple(dict.fromkeys(one.model for one in identities)),
        methods=tuple(dict.fromkeys(one.method for one in quantized)) or (REFERENCE,),
        bits=",".join(bits) or "w4a8",
        datasets=tuple(dict.fromkeys(one.dataset for one in identities)),
        protocol=first.protocol,
        seed=None if fixes_seed(first.protocol) else first.seed,
        block=_block(request),
        prompts=max(look, _most_prompts(request.run, identities[0].model)),
        settings=settings,
        out=request.run,
    )


def _block(request: GateRequest) -> int | None:
    """Return the block size of the run, or of the baseline's run folder, or None for the protocol's."""
    for folder in (request.run, request.baseline):
        if (folder / "run.json").is_file():
            block = RunStore(folder).header()["protocol"].get("block")
            if isinstance(block, bool) or not isinstance(block, int) or block < 1:
                raise UserError(f"{folder / 'run.json'} is damaged: its protocol has no block size")
            return block
    return None


def _most_prompts(run: Path, model: str) -> int:
    """Return the most prompts a cell of the model holds: forming its figures on fewer would drop some."""
    if not (run / "cells").is_dir():
        return 0
    try:
        return max((r.result.n for r in read_side(run) if r.identity.model == model), default=0)
    except ValueError as error:
        raise UserError(str(error)) from error


def _check_prompts(base: Mapping[Name, Record], plan: Plan) -> None:
    """Refuse to generate from other prompts than the baseline's: a file of the same name may hold others."""
    digests = {name: [prompt_digest(prompt) for prompt in found] for name, found in plan.prompts.items()}
    for name, record in base.items():
        if name.dataset not in digests:
            continue
        ours, theirs = digests[name.dataset], record.result.prompts
        shared = min(len(ours), len(theirs))
        if ours[:shared] != theirs[:shared]:
            raise UserError(f"{name}: the prompts here are others than the baseline's; give it the same file")


def _check_protocol(asked: Request, base: Mapping[Name, Record]) -> None:
    """Refuse before anything is generated that could not be compared."""
    from harness.protocols import settle

    ours = settle(asked.protocol, asked.seed, asked.block).hash
    theirs = next(iter(base.values())).identity.protocol_hash
    if ours != theirs:
        raise UserError(
            f"protocol {asked.protocol} is {ours} here and {theirs} in the baseline; make the baseline anew"
        )
