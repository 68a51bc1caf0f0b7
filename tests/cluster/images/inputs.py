"""The inputs of an image: the files of the context that its Dockerfile uses."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def content_hash(dockerfile: Path, context: Path, *further: str) -> str:
    """Return a hash of the Dockerfile, the files that it copies and the `further` strings."""
    digest = hashlib.sha256(json.dumps(further).encode())
    digest.update(dockerfile.read_bytes())
    for path in sorted(set(_files(dockerfile, context))):
        digest.update(f"\0{path.relative_to(context)}\0{path.lstat().st_mode:o}\0".encode())
        digest.update(bytes(path.readlink()) if path.is_symlink() else path.read_bytes())
    return digest.hexdigest()[:16]


def sources(dockerfile: str) -> list[str]:
    """Return the paths, with wildcards, that a Dockerfile copies from its context."""
    paths: list[str] = []
    for line in re.sub(r"\\\s*\n", " ", dockerfile).splitlines():
        instruction, _, rest = line.strip().partition(" ")
        if instruction.upper() in ("COPY", "ADD"):
            paths += _copied(rest)
        elif instruction.upper() == "RUN":
            # A bind mount without `from` is of the context; without a source, of all of it.
            for mount in re.findall(r"--mount=(\S*type=bind\S*)", rest):
                options = dict(part.partition("=")[::2] for part in mount.split(","))
                if "from" not in options:
                    paths.append(options.get("source") or options.get("src") or ".")
    return paths


def _copied(arguments: str) -> list[str]:
    flags = re.match(r"(\s*--\S+)*", arguments)
    rest = arguments[flags.end() :] if flags else arguments
    if flags and "--from=" in flags[0]:
        return []
    words = json.loads(rest) if rest.strip().startswith("[") else shlex.split(rest)
    return [word for word in words[:-1] if "://" not in word and not word.startswith("<<")]


def _files(dockerfile: Path, context: Path) -> Iterator[Path]:
    ignored = _ignored(context)
    for source in sources(dockerfile.read_text()):
        pattern = source.lstrip("/").removeprefix("./").rstrip("/")
        roots = [context] if pattern in ("", ".") else sorted(context.glob(pattern))
        for root in roots:
            yield from (path for path in _walk(root) if not _matches(path, context, ignored))


def _walk(root: Path) -> Iterator[Path]:
    if root.is_symlink() or not root.is_dir():
        yield root
        return
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(set(folders) - {".git", "__pycache__"})
        for name in files:
            yield Path(folder) / name


def _ignored(context: Path) -> list[str]:
    """Return the lines of .dockerignore up to the first exception; more files than necessary are
    hashed then.
    """
    try:
        text = (context / ".dockerignore").read_text()
    except FileNotFoundError:
        return []
    lines = [line.strip().strip("/") for line in text.splitlines()]
    patterns = [line for line in lines if line and not line.startswith("#")]
    return [] if any(pattern.startswith("!") for pattern in patterns) else patterns


def _matches(path: Path, context: Path, patterns: list[str]) -> bool:
    relative = path.relative_to(context)
    names = [str(relative), *(str(parent) for parent in relative.parents if str(parent) != ".")]
    return any(
        fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(name, pattern.removeprefix("**/"))
        for pattern in patterns
        for name in names
    )
