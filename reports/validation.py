"""Checks JSON data against dataclasses, and makes values fit for JSON."""

from __future__ import annotations

import math
import types
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

_INT_LIMIT = 2**63
"""Larger integers overflow the columns of a data frame, and are no count of anything here."""


def finite(value: Any) -> Any:
    """Return `value` with every infinity and NaN, at any depth, replaced by None; tuples become lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return value


def build(cls: type[T], data: object, where: str) -> T:
    """Build the dataclass `cls` from a JSON object, checking every field against its annotation.

    Understands dataclasses, `str`, `int`, `float`, `bool`, `Any`, `Literal`, `X | None`, `list[X]`,
    `dict[str, X]` and `tuple[X, ...]` (of a JSON list). A field may be absent only when it has a default.

    Args:
        cls: the dataclass to build.
        data: what `json.loads` gave.
        where: how messages call `data`.

    Raises:
        ValueError: one line saying where the data departs from the annotations.
    """
    if not isinstance(data, dict):
        raise _mismatch(where, "an object", data)
    hints = _hints(cls)  # type: ignore[arg-type]
    known = {item.name: item for item in fields(cls)}  # type: ignore[arg-type]
    for key in data:
        if key not in known:
            raise ValueError(f"{where} has an unknown field {key!r:.60}")
    for name, item in known.items():
        if name not in data and item.default is MISSING and item.default_factory is MISSING:
            raise ValueError(f"{where} lacks the field {name!r}")
    return cls(
        **{name: _checked(data[name], hints[name], f"{where}.{name}") for name in known if name in data}
    )


@cache
def _hints(cls: type) -> dict[str, Any]:
    """Return a class's annotations; resolving them takes longer than checking a record."""
    return get_type_hints(cls)


def _checked(value: Any, hint: Any, where: str) -> Any:
    """Return `value`, built into dataclasses where `hint` asks for them, or raise ValueError."""
    if hint is Any:
        return value
    if is_dataclass(hint):
        return build(hint, value, where)  # type: ignore[arg-type]
    origin = get_origin(hint)
    if origin is Literal:
        if value not in get_args(hint):
            raise _mismatch(where, f"one of {', '.join(map(str, get_args(hint)))}", value)
        return value
    if origin in {Union, types.UnionType}:
        inner = next(option for option in get_args(hint) if option is not types.NoneType)
        return None if value is None else _checked(value, inner, where)
    if origin in {list, dict, tuple}:
        return _checked_container(value, hint, where)
    return _checked_scalar(value, hint, where)


def _checked_container(value: Any, hint: Any, where: str) -> Any:
    """Check a list (for tuples too), or a dictionary with string keys, item by item."""
    kind, inner = get_origin(hint), get_args(hint)[0 if get_origin(hint) is tuple else -1]
    if not isinstance(value, dict if kind is dict else list):
        raise _mismatch(where, "an object" if kind is dict else "a list", value)
    if inner == float | None and _all_figures(value):
        return kind(value)
    if inner is str and kind is list and {str}.issuperset(map(type, value)):
        return list(value)
    if isinstance(value, dict):
        return {key: _checked(item, inner, f"{where}[{key!r:.60}]") for key, item in value.items()}
    return kind(_checked(item, inner, f"{where}[{index}]") for index, item in enumerate(value))


def _all_figures(values: Any) -> bool:
    """Say whether a list holds nothing but finite floats and None, as most of a record does."""
    return (
        isinstance(values, list)
        and {float, types.NoneType}.issuperset(map(type, values))
        and math.isfinite(sum(value for value in values if value is not None))
    )


def _checked_scalar(value: Any, hint: Any, where: str) -> Any:
    """Check a string, boolean, integer or finite number."""
    if hint in {str, bool}:
        if type(value) is not hint:
            raise _mismatch(where, "a string" if hint is str else "true or false", value)
    elif type(value) is int:
        if not -_INT_LIMIT <= value < _INT_LIMIT:
            raise ValueError(f"{where} is beyond 64 bits")
    elif hint is int:
        raise _mismatch(where, "an integer", value)
    elif type(value) is not float or not math.isfinite(value):
        raise _mismatch(where, "a finite number", value)
    return value


def _mismatch(where: str, expected: str, value: object) -> ValueError:
    """Build the error for a value of another kind than expected."""
    return ValueError(f"{where} must be {expected}, not {value!r:.60}")
