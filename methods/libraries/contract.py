"""What a method of a library is: a method that names the distributions it calls and the devices it runs on.

The rest of the contract is `harness.methods.contract`: such a method is handed the same job and the same
layers, is never part of `all`, and stores what the library made of a weight in packed layers of its own
(`harness.methods.libraries.layer`).
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from harness.compat import ensure_torchvision, quiet_imports
from harness.errors import CellError, not_installed
from harness.methods.contract import MethodConfig, MethodSpec, QuantizeJob
from harness.methods.registry import register

ConfigT = TypeVar("ConfigT", bound=MethodConfig)


@dataclass(frozen=True)
class LibrarySpec(MethodSpec[ConfigT]):
    """A registered method of a library.

    Attributes:
        libraries: the distributions it calls, beside torch and diffusers; their versions are part of a
            cell's key and of its record.
        devices: kinds of devices it runs on; another gives a typed `unsupported` row.
    """

    libraries: tuple[str, ...] = ()
    devices: tuple[str, ...] = ("cpu", "cuda")

    def versions(self) -> dict[str, str | None]:
        """Return the installed version of each library, None where it is not installed."""
        return {name: installed_version(name) for name in self.libraries}


def library_method(
    name: str, config: type[ConfigT], *, version: int, libraries: tuple[str, ...], **traits: Any
) -> Callable[[Callable[[QuantizeJob, ConfigT], None]], Callable[[QuantizeJob, ConfigT], None]]:
    """Register the decorated function as method `name` of some libraries; `--methods all` leaves it out.

    Args:
        name: the name on the command line.
        config: the frozen config dataclass.
        version: raise it when the results change for another reason than the libraries.
        libraries: distributions that must be installed.
        **traits: further fields of `LibrarySpec`.

    Raises:
        ValueError: another function is registered under the name (on registration).
    """

    def decorate(function: Callable[[QuantizeJob, ConfigT], None]) -> Callable[[QuantizeJob, ConfigT], None]:
        spec = LibrarySpec(name, config, function, version, libraries=libraries, in_all=False, **traits)
        register(spec)
        return function

    return decorate


def installed_version(distribution: str) -> str | None:
    """Return the version of an installed distribution, or None; nothing is imported."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def label(distribution: str) -> str:
    """Return name and version, as ledgers and tables show them."""
    return f"{distribution} {installed_version(distribution) or ''}".strip()


def load_library(distribution: str, module: str) -> Any:
    """Import a module of a library.

    Args:
        distribution: its name on the package index.
        module: what to import.

    Raises:
        CellError: `unsupported`, when it is not installed or cannot be imported here.
    """
    if installed_version(distribution) is None:
        raise CellError("unsupported", not_installed(distribution))
    try:
        ensure_torchvision()
        with quiet_imports():
            return importlib.import_module(module)
    except Exception as error:  # a library built for another torch or driver fails in any way it likes
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CellError("unsupported", f"{label(distribution)} cannot be imported: {first}") from error
