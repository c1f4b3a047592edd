"""From content to the HTML file: template, style and script are put into one page that loads nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from harness.reports.page.data import Source, build, script_json
from harness.reports.record import Record

SCRIPTS = (
    "core",
    "table",
    "state",
    "grid",
    "pareto",
    "prompts",
    "compare",
    "layers",
    "steps",
    "about",
    "theme",
    "start",
)
"""The parts of the script, `templates/page-NAME.js`, in the order they are joined in."""


def render(records: Iterable[Record], source: Source | None = None) -> str:
    """Return the page of a run as one HTML document.

    It loads nothing: its policy allows its own style and script, known by their digests, and images inside
    the page. Whatever comes from records or prompts reaches it as JSON and is put into it as text.

    Args:
        records: cells in any order.
        source: where images, layers, prompts and the protocol come from; without it, figures only.

    Raises:
        ValueError: an image or a ledger cannot be read; the line names its file.
    """
    content = build(records, source or Source())
    return assemble(
        "page.html.jinja",
        SCRIPTS,
        title=_title(content.head["groups"]),
        head=Markup(script_json(content.head)),
        details=[Markup(script_json(detail)) for detail in content.details],
    )


def assemble(template: str, scripts: Sequence[str], **content: Any) -> str:
    """Fill a template with the style, parts of the script and content; what is no markup is escaped."""
    style, script = _part("page.css"), _script(scripts)
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.from_string(_part(template)).render(
        policy=_policy(style, script), style=Markup(style), script=Markup(script), **content
    )


def _title(groups: list[dict[str, object]]) -> str:
    """Return the title of the window: the models, as far as there are few."""
    models = list(dict.fromkeys(str(group["model"]) for group in groups))
    named = ", ".join(models[:3]) + (", …" if len(models) > 3 else "")
    return f"Low-bit quantization: {named}" if named else "Low-bit quantization of diffusion models"


def _script(names: Sequence[str]) -> str:
    """Return the whole script: its parts share one scope of their own."""
    parts = "\n".join(_part(f"page-{name}.js") for name in names)
    return f'"use strict";\n(() => {{\n{parts}}})();\n'


def _part(name: str) -> str:
    """Return a file of the templates, without what would end the element it stands in."""
    text = (files("harness.reports") / "templates" / name).read_text(encoding="utf-8")
    if not name.endswith(".jinja") and "</" in text:
        raise ValueError(f"{name} holds </, which would end its element")
    return text


def _policy(style: str, script: str) -> str:
    """Return the page's content security policy."""
    return (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    """Return the digest by which a policy knows an inline style or script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
