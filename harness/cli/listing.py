"""`harness list`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any

import typer

from harness.errors import unknown


def _models() -> list[dict[str, Any]]:
    from harness.models import registry

    cards = [registry.get(name) for name in registry.names()]
    return [
        {
            "name": card.name,
            "pipeline": card.pipeline,
            "embedded": card.embedded,
            "steps": card.sampling.steps,
            "summary": card.summary,
        }
        for card in cards
    ]


def _methods() -> list[dict[str, Any]]:
    from dataclasses import asdict

    from harness.methods import registry
    from harness.methods.libraries.contract import LibrarySpec

    specs = [registry.get(name) for name in registry.names()]
    rows: list[dict[str, Any]] = [
        {
            "name": spec.name,
            "version": spec.version,
            "weight_bits": list(spec.weight_bits),
            "act_bits": [16] if spec.weight_only else list(spec.act_bits),
            "weight_only": spec.weight_only,
            "needs_calibration": spec.needs_calibration,
            "reconstruction": spec.reconstruction,
            "settings": asdict(registry.configure(spec.name, {})),
            "variants": {label: [dict(member) for member in sets] for label, sets in spec.variants.items()},
            "libraries": spec.versions() if isinstance(spec, LibrarySpec) else {},
            "devices": list(spec.devices) if isinstance(spec, LibrarySpec) else [],
            "summary": spec.summary,
        }
        for spec in specs
    ]
    broken = registry.broken().items()
    return rows + [
        {"name": name, "broken": reason, "summary": f"broken: {reason}"} for name, reason in broken
    ]


def _datasets() -> list[dict[str, Any]]:
    from harness.datasets import registry

    sets = [registry.get(name) for name in registry.names()]
    return [{"name": s.name, "takes_path": s.takes_path, "summary": s.summary} for s in sets]


def _metrics() -> list[dict[str, Any]]:
    from dataclasses import asdict

    from harness.metrics import METRICS

    return [asdict(spec) for spec in METRICS.values()]


KINDS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "models": _models,
    "methods": _methods,
    "datasets": _datasets,
    "metrics": _metrics,
}


def list_command(
    kind: Annotated[str, typer.Argument(metavar="models|methods|datasets|metrics", help="What to list.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything known, as JSON.")] = False,
) -> None:
    """List models, methods, datasets or metrics."""
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    rows = KINDS[kind]()
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        unsaid = row.get("reconstruction") and "reconstruction" not in row["summary"]
        mark = " (reconstruction)" if unsaid else ""
        versions = row.get("libraries", {})
        missing = [library for library, version in versions.items() if version is None]
        mark += f" ({', '.join(missing)} not installed)" if missing else ""
        print(f"{row['name']:<{width}}  {row['summary']}{mark}")
