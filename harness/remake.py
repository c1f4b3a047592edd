"""Requests that make the cell of a record again."""

from __future__ import annotations

from harness import run as runner
from harness.canonical import canonical_json
from harness.execute import resolve
from harness.reports.record import Identity
from harness.world import World


def settings_of(identity: Identity) -> tuple[str, ...]:
    """Return the `--set` options that make a cell's variant.

    Raises:
        UserError: there is no such method.
    """
    if identity.variant == "default":
        return ()
    world: World = resolve(runner.DEFAULT_WORLD)
    defaults = world.method(identity.method, {}).config
    changed = {key: value for key, value in identity.config.items() if value != defaults.get(key)}
    shown = {k: v if isinstance(v, str) else canonical_json(v) for k, v in changed.items()}
    return tuple(f"{identity.method}.{key}={shown[key]}" for key in sorted(shown))


def fixes_seed(protocol: str) -> bool:
    """Whether a protocol leaves no choice of the seed; raises UserError when there is none of that name."""
    from harness.protocols import settle

    return settle(protocol, None).base.seed is not None
