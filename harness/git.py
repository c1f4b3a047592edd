"""What git knows of the tree this code is run from; nothing where there is no git or no tree."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UserError

_TIMEOUT = 60.0


@dataclass(frozen=True)
class Commit:
    """A commit, and whether tracked files differ from it."""

    name: str
    dirty: bool


def _git(folder: Path, *arguments: str) -> bytes | None:
    """Return what git prints, or None when it fails or is not there."""
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            check=False,
            timeout=_TIMEOUT,
            env=environment,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def commit_of(folder: Path, *ignored: str) -> Commit | None:
    """Return the commit that the sources in `folder` are checked out at, or None when they are in no tree.

    Args:
        folder: a package's; it must be tracked. An environment inside somebody's tree is not part of it.
        ignored: patterns of files, from the top of the tree, whose changes do not count.
    """
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    name = _git(folder, "rev-parse", "--verify", "HEAD")
    exclude = [f":(top,exclude,glob){pattern}" for pattern in ignored]
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ":(top)", *exclude)
    if name is None or changed is None:
        return None
    return Commit(name.decode().strip(), bool(changed.strip()))


def files_at(folder: Path, revision: str, ending: str) -> dict[str, bytes]:
    """Return the files of a folder that a revision holds, by name.

    Args:
        folder: in a git tree; only what lies directly in it is looked at.
        revision: a branch, tag or commit.
        ending: how the files' names end.

    Raises:
        UserError: the folder is in no git tree, or there is no such revision.
    """
    if _git(folder, "rev-parse", "--is-inside-work-tree") is None:
        raise UserError(f"{folder} is in no git tree; --since needs one")
    commit = _git(folder, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if commit is None:
        raise UserError(f"--since {revision}: no such revision in the git tree of {folder}")
    name = commit.decode().strip()
    listed = _git(folder, "ls-tree", "-z", "--name-only", name, "./") or b""
    found = {}
    for path in listed.decode(errors="surrogateescape").split("\0"):
        if path.endswith(ending):
            content = _git(folder, "cat-file", "blob", f"{name}:./{path}")
            if content is None:
                raise UserError(f"git cannot read {path} of {revision}")
            found[path] = content
    return found


def subjects(folder: Path, commits: str, most: int) -> list[str]:
    """Return the first lines of commits, newest first, at most `most`; none where git does not know them.

    Args:
        folder: in a git tree.
        commits: a range such as `A..B` of full names.
        most: how many.
    """
    printed = _git(
        folder, "log", "--no-color", f"--max-count={most}", "--format=%h %s", "--end-of-options", commits
    )
    return [] if printed is None else printed.decode(errors="replace").splitlines()
