"""This machine's access to its package indexes, reused by image builds.

Everything is mounted during a build and never becomes part of an image, because it may contain
addresses and passwords.
"""

from __future__ import annotations

import ast
import configparser
import os
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

# An empty folder in every Debian image, so that mounting on it leaves nothing behind.
_PLACE = Path("/mnt")
_APT_SOURCES = Path("/etc/apt")
_SUITE = "trixie"
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_APT_SETTINGS = re.compile(r"^(Acquire::[^\s\"]*)\s+\"([^\"]*)\";")
_BUNDLES = ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")


@contextmanager
def package_indexes() -> Iterator[list[tuple[Path, Path]]]:
    """Return the mounts by which apt and pip in a Debian image work as on this machine."""
    with tempfile.TemporaryDirectory(prefix="engineroom-indexes-") as scratch:
        folder = Path(scratch)
        # The build's own programs may run as another user.
        folder.chmod(0o755)
        mounts = [(folder, _PLACE)]
        bundle = _certificates()
        if bundle is not None:
            shutil.copy(bundle, folder / "certificates.crt")
        settings = pip_settings()
        mounts += _wheels(folder, settings)
        _write_pip(folder, settings, bundle is not None)
        mounts.append((folder / "pip.conf", Path("/etc/pip.conf")))
        sources = debian_sources()
        if sources is not None:
            (folder / "debian.sources").write_text(sources)
            place = Path("/etc/apt/sources.list.d/debian.sources")
            mounts.append((folder / "debian.sources", place))
        (folder / "apt.conf").write_text(_apt_settings(bundle is not None))
        mounts.append((folder / "apt.conf", Path("/etc/apt/apt.conf.d/docker-gzip-indexes")))
        yield mounts


def debian_mirror() -> str | None:
    """Return the URL of the machine's Debian mirror; None if the machine is not Debian."""
    for address, suites in _host_sources():
        if not any("security" in suite for suite in suites):
            return address
    return None


def debian_sources() -> str | None:
    """Return sources for the base image's suite on the machine's mirrors; None without Debian
    mirrors.
    """
    archive = debian_mirror()
    if archive is None:
        return None
    security = [a for a, suites in _host_sources() if any("security" in suite for suite in suites)]
    entries = [(archive, f"{_SUITE} {_SUITE}-updates")]
    entries += [(address, f"{_SUITE}-security") for address in security[:1]]
    return "\n".join(
        f"Types: deb\nURIs: {address}\nSuites: {suites}\nComponents: main\nSigned-By: {_KEYRING}\n"
        for address, suites in entries
    )


def _host_sources() -> list[tuple[str, list[str]]]:
    """Return URL and suites of each official Debian source, in both formats that apt reads."""
    if not _is_debian():
        return []
    sources: list[tuple[str, list[str]]] = []
    files = [_APT_SOURCES / "sources.list", *sorted((_APT_SOURCES / "sources.list.d").glob("*"))]
    for file in files:
        if file.suffix == ".sources":
            sources += _parse_deb822(file.read_text())
        elif file.suffix == ".list" and file.is_file():
            sources += _parse_lines(file.read_text())
    return sources


def _parse_deb822(text: str) -> list[tuple[str, list[str]]]:
    sources = []
    for paragraph in re.split(r"\n\s*\n", text):
        fields = {}
        for line in paragraph.splitlines():
            key, colon, value = line.partition(":")
            if colon and not line.startswith(("#", " ", "\t")):
                fields[key.strip().lower()] = value.strip()
        types, addresses = fields.get("types", "").split(), fields.get("uris", "").split()
        suites = fields.get("suites", "").split()
        if "deb" in types and fields.get("enabled") != "no" and _debians(suites, fields):
            sources += [(address, suites) for address in addresses]
    return sources


def _debians(suites: list[str], fields: dict[str, str]) -> bool:
    """Return True for an official Debian source, False for third-party packages."""
    return "debian-archive" in fields.get("signed-by", "debian-archive") and _own_suites(suites)


def _own_suites(suites: list[str]) -> bool:
    names = f"{_codename()}|stable|testing|unstable|sid"
    return any(re.fullmatch(rf"({names})([-/](updates|security|backports))?", s) for s in suites)


def _parse_lines(text: str) -> list[tuple[str, list[str]]]:
    blocks = []
    for line in text.splitlines():
        match = re.match(r"deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s+.*\bmain\b", line.strip())
        if match and _own_suites([match[2]]):
            blocks.append((match[1], [match[2]]))
    return blocks


def _release() -> dict[str, str]:
    try:
        text = Path("/etc/os-release").read_text()
    except FileNotFoundError:
        return {}
    rows = (line.partition("=") for line in text.splitlines())
    return {key: value.strip('"') for key, _, value in rows}


def _is_debian() -> bool:
    return _release().get("ID") == "debian"


def _codename() -> str:
    return re.escape(_release().get("VERSION_CODENAME", "stable"))


def _certificates() -> Path | None:
    """Return the CA certificates that this machine trusts, in one file."""
    candidates = [os.environ.get(name, "") for name in _BUNDLES]
    candidates += [
        "/etc/ssl/certs/ca-certificates.crt",
        ssl.get_default_verify_paths().cafile or "",
    ]
    return next((Path(path) for path in candidates if path and Path(path).is_file()), None)


def _apt_settings(own_certificates: bool) -> str:
    """Return proxies and similar settings of apt."""
    lines = []
    if shutil.which("apt-config"):
        dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False)
        for line in dump.stdout.splitlines():
            match = _APT_SETTINGS.match(line)
            # Paths are of this machine, and mean nothing in the image.
            if match and not match[2].startswith("/") and not match[1].endswith("::"):
                lines.append(f'{match[1]} "{match[2]}";')
    if own_certificates:
        lines.append(f'Acquire::https::CAInfo "{_PLACE}/certificates.crt";')
    return "\n".join(lines) + "\n"


def pip_settings() -> dict[str, str]:
    """Return pip's configuration on this machine, merged from files and environment as pip does."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0 and (pip := shutil.which("pip")):
        result = subprocess.run(
            [pip, "config", "list"], capture_output=True, text=True, check=False
        )
    settings = {}
    rank = {"global": 0, "install": 1, ":env:": 2}
    ranked: dict[str, int] = {}
    for line in result.stdout.splitlines():
        name, equals, value = line.partition("=")
        section, _, key = name.rpartition(".")
        if equals and section in rank and rank[section] >= ranked.get(key, 0):
            settings[key], ranked[key] = str(ast.literal_eval(value)), rank[section]
    return settings


def _wheels(folder: Path, settings: dict[str, str]) -> list[tuple[Path, Path]]:
    """Return mounts for pip's package folders; change `settings` to name them."""
    mounts, places = [], []
    for number, link in enumerate(settings.get("find-links", "").split()):
        path = Path(urlsplit(link).path)
        if urlsplit(link).scheme in ("", "file"):
            if path.is_dir() and any(path.iterdir()):
                (folder / f"wheels{number}").mkdir()
                mounts.append((path, _PLACE / f"wheels{number}"))
                places.append(str(_PLACE / f"wheels{number}"))
        else:
            places.append(link)
    settings.pop("find-links", None)
    if places:
        settings["find-links"] = " ".join(places)
    return mounts


_PIP_KEYS = (
    "index-url",
    "extra-index-url",
    "find-links",
    "trusted-host",
    "proxy",
    "timeout",
    "retries",
    "no-index",
)


def _write_pip(folder: Path, settings: dict[str, str], own_certificates: bool) -> None:
    chosen = {key: settings[key] for key in _PIP_KEYS if key in settings}
    if "default-timeout" in settings:
        chosen.setdefault("timeout", settings["default-timeout"])
    if own_certificates:
        chosen["cert"] = f"{_PLACE}/certificates.crt"
    configuration = configparser.RawConfigParser()
    configuration["global"] = {key: value.replace("\n", " ") for key, value in chosen.items()}
    with (folder / "pip.conf").open("w") as file:
        configuration.write(file)
