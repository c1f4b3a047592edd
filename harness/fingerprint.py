"""Numerics fingerprint: which code and libraries a result came from, so that no changed kernel reuses it.

The source files are found by a static scan of import statements; nothing is executed but the parent packages
of a plugin.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path

from harness.canonical import digest_bytes, digest_json

NUMERIC_PACKAGES = ("harness.kernels", "harness.methods")
LIBRARIES = ("torch", "diffusers")
_FOR_TYPES = ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def source_digest(roots: Iterable[str], packages: Iterable[str] = NUMERIC_PACKAGES) -> str:
    """Return the sha256 over the sources of `roots` and of all they import, transitively.

    Args:
        roots: module names to start from; followed whatever package they are in.
        packages: only imports inside these packages, or inside the top package of a root that is not part
            of the harness (a plugin's own files), are followed.

    Raises:
        ModuleNotFoundError: a root has no source file.
    """
    waiting = sorted(set(roots))
    missing = [name for name in waiting if _source_file(name) is None]
    if missing:
        raise ModuleNotFoundError(f"no source file for {', '.join(missing)}")
    own = {name.partition(".")[0] for name in waiting} - {"harness"}
    inside = (*packages, *own)
    digests: dict[str, str] = {}
    while waiting:
        name = waiting.pop()
        path = _source_file(name)
        if name in digests or path is None:
            continue
        digests[name] = digest_bytes(path.read_bytes())
        waiting += [found for found in imported_modules(name, path) if _is_inside(found, inside)]
    return digest_json(digests)


def library_versions() -> dict[str, str]:
    """Return the installed versions of torch and diffusers without importing them."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


def imported_modules(name: str, path: Path) -> Iterator[str]:
    """Yield every module name that the source at `path` could import, also inside functions.

    `from a.b import c` yields `a.b` and `a.b.c`: which of them is a module is for the caller to find out.
    What stands under `if TYPE_CHECKING:` is never run, so no result depends on it.
    """
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in _executed(ast.parse(path.read_bytes(), filename=str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, package)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _executed(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield every node but those of the bodies of `if TYPE_CHECKING:`."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.If) and ast.unparse(node.test) in _FOR_TYPES:
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parents = package.split(".")
    kept = parents[: len(parents) - (node.level - 1)]
    return ".".join([*kept, *([node.module] if node.module else [])])


def _is_inside(name: str, packages: Iterable[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _source_file(name: str) -> Path | None:
    parent = name.rpartition(".")[0]
    if parent and not _is_package(parent):
        return None
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin)


def _is_package(name: str) -> bool:
    path = _source_file(name)
    return path is not None and path.name == "__init__.py"
