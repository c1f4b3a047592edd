"""`harness doctor`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.errors import UserError, unknown

if TYPE_CHECKING:
    from harness.conformance.check import Verdict

ALL_WELL, SOMETHING_DIFFERS = 0, 1


def doctor_command(
    data_path: Annotated[
        list[str] | None, typer.Option(metavar="NAME=PATH", help="Weights of a metric, as for `run`.")
    ] = None,
    checks: Annotated[bool, typer.Option(help="Compare every metric with its golden value.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything, as JSON.")] = False,
    gpu: Annotated[
        bool, typer.Option("--gpu", help="Check the kernels of packed layers on the GPU, and nothing else.")
    ] = False,
) -> int:
    """Say what this machine can measure, and whether it measures it right."""
    if gpu:
        return _check_kernels(as_json)
    paths = _paths(data_path or [])
    from harness.compat import quiet_imports

    with quiet_imports():
        from harness.metrics.readiness import readiness

        report: dict[str, Any] = {"environment": _environment(), "metrics": readiness(paths)}
        verdicts = _verdicts() if checks else []
    report["checks"] = [asdict(verdict) for verdict in verdicts]
    if as_json:
        print(json.dumps(report, indent=1))
    else:
        _print(report, verdicts)
    return SOMETHING_DIFFERS if any(verdict.failed for verdict in verdicts) else ALL_WELL


def _check_kernels(as_json: bool) -> int:
    """Run the parity suite on the GPU."""
    import torch

    if not torch.cuda.is_available():
        raise UserError("doctor --gpu: torch sees no CUDA device here")
    from harness.conformance.parity import TOLERANCE, check_parity

    report: dict[str, Any] = {"environment": _environment(), "tolerance": TOLERANCE, "kernels": []}
    if not as_json:
        _print_machine(report["environment"])
        print("\nkernels: road, error against float64, difference from the reference backend")
    bad = 0
    for found in check_parity("cuda"):
        bad += not found.ok
        report["kernels"].append(asdict(found))
        if not as_json:
            verdict = "ok" if found.ok else f"differs: {found.detail}"
            print(f"  {found.case}: {found.road}, {found.error:.2g}, {found.reference_error:.2g}, {verdict}")
    if as_json:
        from harness.reports.validation import finite

        print(json.dumps(finite(report), indent=1))
    else:
        print(f"\n{len(report['kernels']) - bad} of {len(report['kernels'])} layers agree, {bad} differ")
    return SOMETHING_DIFFERS if bad else ALL_WELL


def _paths(texts: list[str]) -> dict[str, Path]:
    """Return `--data-path` by key; raises UserError for an unknown key or a path that does not hold it."""
    from harness.metrics import DATA_PATHS, check_data_paths

    found = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not (equals and name and path):
            raise UserError(f"--data-path {text!r} is not NAME=PATH")
        if name not in DATA_PATHS:
            raise unknown("--data-path name", name, DATA_PATHS)
        found[name] = Path(path)
    check_data_paths(found)
    return found


def _environment() -> dict[str, Any]:
    from harness.measure.environment import environment

    return environment()


def _verdicts() -> list[Verdict]:
    """Run every check on one thread, as cells are measured."""
    from harness.conformance.check import run
    from harness.conformance.suite import CHECKS
    from harness.metrics.weights import single_thread

    with single_thread():
        return run(CHECKS)


def _print(report: dict[str, Any], verdicts: list[Verdict]) -> None:
    _print_machine(report["environment"])
    print("\nmetrics")
    width = max(len(row["name"]) for row in report["metrics"])
    for row in report["metrics"]:
        print(f"  {row['name']:<{width}}  {row['state']:<8} {row['detail']}".rstrip())
    if not verdicts:
        return
    print("\nconformance")
    for verdict in verdicts:
        print(f"  {verdict.metric:<{width}}  {verdict.outcome:<8} {verdict.source}{_difference(verdict)}")
    bad = sum(verdict.failed for verdict in verdicts)
    left = sum(verdict.outcome == "not run" for verdict in verdicts)
    print(f"\n{len(verdicts) - bad - left} of {len(verdicts)} checks agree, {bad} differ, {left} not run")


def _print_machine(environment: dict[str, Any]) -> None:
    print(f"python {environment['python']}, {environment['system']}")
    print(", ".join(f"{name} {version}" for name, version in environment["versions"].items()))
    gpu = environment["gpu"]
    card = (
        "none" if gpu is None else f"{gpu['name']}, {gpu['memory_bytes'] / 2**30:.0f} GiB, CUDA {gpu['cuda']}"
    )
    print(f"cpu: {environment['cpu']}, {environment['cores']} cores; gpu: {card}")


def _difference(verdict: Verdict) -> str:
    if verdict.found is None or verdict.expected is None:
        return f": {verdict.message}"
    if not verdict.failed:
        return ""
    return f": found {verdict.found:.10g}, expected {verdict.expected:.10g}"
