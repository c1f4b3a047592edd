"""Which metrics can be formed on this machine, and with which weights."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.metrics import METRICS, MetricSpec
from harness.metrics.sources import WEIGHTS, find, missing_note
from harness.metrics.weights import NOT_PUBLISHED, check_published, load_weights

_OPTIONAL = {"image-reward": "package image-reward is not installed: pip install lowbit-harness[reward]"}
"""What to say where the package of that name is not installed."""
_ON_SCENES = ("fid", "fid_ref", "fid_delta", "kid", "kid_delta", "precision", "recall")
"""Metrics that are formed on the embedded world without weights."""


def readiness(data_paths: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Return a row per metric, in the order of `METRICS`.

    Args:
        data_paths: weights given by path; others are looked for in the caches.

    Returns:
        `name`, `state` (`ready`, `scenes` for what is ready on the embedded world alone, `missing`,
        `damaged`), `detail` (weights with their sha256, or what is missing and how to get it) and the
        weights' `licence`.
    """
    weights = {key: _state(key, data_paths) for key in WEIGHTS}
    return [_row(name, spec, weights) for name, spec in METRICS.items()]


def _row(name: str, spec: MetricSpec, weights: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    if spec.data is None:
        return {"name": name, "state": "ready", "detail": "", "licence": None}
    state, detail = weights[spec.data]
    if state == "missing" and name in _ON_SCENES:
        state, detail = "scenes", f"other prompt sets: {detail}"
    return {"name": name, "state": state, "detail": detail, "licence": WEIGHTS[spec.data].licence}


def _state(key: str, data_paths: Mapping[str, Path]) -> tuple[str, str]:
    """Return the state of weights and what there is to say of them."""
    if key in _OPTIONAL and not _installed(key):
        return "missing", _OPTIONAL[key]
    found = find(key, data_paths)
    if found is None:
        return "missing", missing_note(key).removeprefix("n/a: ")
    try:
        note = check_published(found)
        if note.endswith(NOT_PUBLISHED):  # nothing vouches for it but that it can be read
            load_weights(found.path())
    except UserError as error:
        return "damaged", str(error)
    return "ready", note


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
