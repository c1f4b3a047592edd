"""The methods there are: built-in ones, and those of other packages, found through entry points.

Every entry point of the group `harness.methods` names a module; importing it registers its methods by the
decorator `harness.methods.contract.method`. A module that cannot be imported is remembered with its reason
and reported when its method is asked for; the others go on.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, Union

from harness.errors import UserError, unknown
from harness.methods.contract import MethodConfig, MethodSpec

GROUP = "harness.methods"
BUILT_IN = ("ptq", "nf4", "svdquant", "mpqdm", "mpqdmv2", "gptq", "hqq", "adaround")

_specs: dict[str, MethodSpec[Any]] = {}
_broken: dict[str, str] = {}


def register(spec: MethodSpec[Any]) -> None:
    """Add a method.

    Raises:
        ValueError: another function is registered under the same name.
        TypeError: the config is not a `MethodConfig`.
    """
    if not (isinstance(spec.config, type) and issubclass(spec.config, MethodConfig)):
        raise TypeError(f"the config of method {spec.name!r} is not a MethodConfig")
    held = _specs.get(spec.name)
    if held is not None and held.quantize is not spec.quantize:
        raise ValueError(f"method {spec.name!r} is already registered by {held.quantize.__module__}")
    _specs[spec.name] = spec


@cache
def load_plugins() -> None:
    """Import the built-in methods and every module of the entry-point group once; failures go to `broken`."""
    own = [EntryPoint(name, f"harness.methods.{name}", GROUP) for name in BUILT_IN]
    others = [point for point in entry_points(group=GROUP) if point not in own]
    for point in (*own, *sorted(others, key=lambda p: (p.name, p.value))):
        _load(point)


def names() -> list[str]:
    """Return the names of all usable methods: the built-in ones first, then the others by name."""
    load_plugins()
    return sorted(_specs, key=_rank)


def broken() -> dict[str, str]:
    """Return, by entry-point name, the one-line reason of every plugin that could not be imported."""
    load_plugins()
    return dict(_broken)


def get(name: str) -> MethodSpec[Any]:
    """Return the method `name`.

    Raises:
        UserError: there is none (the nearest names are given), or its plugin could not be imported (why).
    """
    load_plugins()
    if name in _specs:
        return _specs[name]
    if name in _broken:
        raise UserError(f"method {name!r} could not be loaded: {_broken[name]}")
    raise unknown("method", name, _specs)


def configure(name: str, overrides: Mapping[str, str]) -> MethodConfig:
    """Build the config of method `name` from its defaults and `--set NAME.KEY=VALUE` strings.

    Args:
        name: a registered method.
        overrides: field name to text, parsed by the field's type.

    Raises:
        UserError: no such method or key, or a value the field does not take; the nearest are named.
    """
    config = get(name).config
    hints = typing.get_type_hints(config)
    keys = [f.name for f in fields(config)]
    values = {}
    for key, text in overrides.items():
        if key not in keys:
            raise unknown(f"setting of {name}", key, keys) if keys else UserError(f"{name} has no settings")
        values[key] = _parse(f"{name}.{key}", text.strip(), hints[key])
    try:
        configured: MethodConfig = config(**values)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error
    return configured


def variants(name: str, label: str) -> tuple[Mapping[str, str], ...]:
    """Return the named set `label` of settings of method `name`, as `--set` would give them.

    Raises:
        UserError: no such method or set; the nearest are named.
    """
    sets = get(name).variants
    if label in sets:
        return sets[label]
    raise (
        unknown(f"set of {name}", label, sets) if sets else UserError(f"{name} has no named sets of settings")
    )


def _rank(name: str) -> tuple[int, str]:
    return (BUILT_IN.index(name) if name in BUILT_IN else len(BUILT_IN), name)


def _load(point: EntryPoint) -> None:
    before = dict(_specs)
    try:
        point.load()
    except (Exception, SystemExit) as error:
        # A module that failed half-way may have registered a method that cannot work: take it back.
        _specs.clear()
        _specs.update(before)
        first_line = (str(error).strip().splitlines() or [""])[0]
        _broken[point.name] = f"{type(error).__name__}: {first_line}"


def _parse(key: str, text: str, kind: Any) -> Any:
    """Read `text` as a value of the type `kind`; raises UserError naming `key`."""
    origin = typing.get_origin(kind)
    if origin in (Union, types.UnionType):
        inner = [k for k in typing.get_args(kind) if k is not type(None)]
        if len(inner) < len(typing.get_args(kind)) and text.lower() == "none":
            return None
        if len(inner) == 1:
            return _parse(key, text, inner[0])
    if origin is Literal:
        choices = {str(choice): choice for choice in typing.get_args(kind)}
        if text not in choices:
            raise unknown(f"value of {key}:", text, choices)
        return choices[text]
    if kind is bool:
        words = {"true": True, "1": True, "yes": True, "on": True}
        words |= {"false": False, "0": False, "no": False, "off": False}
        if text.lower() not in words:
            raise unknown(f"value of {key}:", text, ["true", "false"])
        return words[text.lower()]
    if kind is str:
        return text
    if kind in (int, float):
        return _number(key, text, kind)
    raise UserError(f"{key} cannot be set from the command line")


def _number(key: str, text: str, kind: type[int] | type[float]) -> int | float:
    noun = "a whole number" if kind is int else "a finite number"
    try:
        value = kind(text)
    except ValueError as error:
        raise UserError(f"{key} takes {noun}, not {text!r}") from error
    if not math.isfinite(value):
        raise UserError(f"{key} takes {noun}, not {text!r}")
    return value
