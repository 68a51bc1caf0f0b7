"""The certificates of a cluster: its authority and what it signs, created by openssl."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

from .api import ClusterError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_DAYS = "3650"
_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


class Authority:
    """A certificate authority stored in a folder. Existing files are reused."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder = folder
        self._name = name
        self.certificate = folder / f"{name}.crt"
        self._key = folder / f"{name}.key"

    def ensure(self) -> None:
        """Create the authority, unless it exists."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        extensions = [
            "basicConstraints=critical,CA:TRUE",
            "keyUsage=critical,keyCertSign,digitalSignature",
        ]
        self._make(self.certificate, self._key, f"/CN=engineroom-{self._name}", extensions, [])

    def issue(
        self,
        name: str,
        common_name: str,
        *,
        groups: Sequence[str] = (),
        hosts: Sequence[str] = (),
    ) -> tuple[Path, Path]:
        """Create a certificate and its key, unless they exist.

        For the API server, `common_name` is the user and `groups` the user's groups. `hosts` are
        `IP:` or `DNS:` entries, for servers.
        """
        certificate, key = self._folder / f"{name}.crt", self._folder / f"{name}.key"
        subject = "".join(f"/O={group}" for group in groups) + f"/CN={common_name}"
        extensions = [
            "basicConstraints=critical,CA:FALSE",
            "keyUsage=critical,digitalSignature",
            "extendedKeyUsage=clientAuth,serverAuth",
        ]
        if hosts:
            extensions.append("subjectAltName=" + ",".join(hosts))
        signer = ["-CA", str(self.certificate), "-CAkey", str(self._key)]
        self._make(certificate, key, subject, extensions, signer)
        return certificate, key

    def _make(
        self, certificate: Path, key: Path, subject: str, extensions: list[str], signer: list[str]
    ) -> None:
        if certificate.exists() and key.exists():
            return
        new_certificate, new_key = certificate.with_suffix(".crt.new"), key.with_suffix(".key.new")
        output = ["-keyout", str(new_key), "-out", str(new_certificate)]
        # An empty configuration: the system's would add extensions of its own.
        request = ["req", "-x509", "-config", "/dev/null", *_KEY, "-days", _DAYS, "-subj", subject]
        added = [argument for extension in extensions for argument in ("-addext", extension)]
        _openssl([*request, *signer, *output, *added])
        new_key.rename(key)
        new_certificate.rename(certificate)


def ensure_signing_key(folder: Path) -> tuple[Path, Path]:
    """Create the key pair for service account tokens, unless it exists."""
    private, public = folder / "service-accounts.key", folder / "service-accounts.pub"
    if not public.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        curve = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
        _openssl(["genpkey", *curve, "-out", str(private)])
        _openssl(["pkey", "-in", str(private), "-pubout", "-out", str(public)])
    return private, public


def _openssl(arguments: list[str]) -> None:
    result = subprocess.run(
        ["openssl", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        umask=0o077,
        env=os.environ | {"OPENSSL_CONF": "/dev/null"},
    )
    if result.returncode != 0:
        raise ClusterError(f"openssl {arguments[0]} failed:\n{result.stderr.strip()}")
