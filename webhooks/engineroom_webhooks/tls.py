"""The TLS context of the server; its certificate changes while the server runs."""

from __future__ import annotations

import os
import ssl
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engineroom_webhooks.certificates import CertificatePair


def context(pair: CertificatePair) -> ssl.SSLContext:
    """Create a server context that uses ``pair``. Raises ssl.SSLError if the two do not match."""
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.minimum_version = ssl.TLSVersion.TLSv1_2
    # With a ticket a client could reconnect without the new certificate.
    server_context.options |= ssl.OP_NO_TICKET
    server_context.num_tickets = 0
    _load(server_context, pair)
    return server_context


def change(live: ssl.SSLContext, pair: CertificatePair) -> None:
    """Use ``pair`` for new connections of ``live``; open ones continue.

    Call it in the event loop's thread, where no handshake can interfere. Raises ssl.SSLError, with
    ``live`` unchanged, if certificate and key do not match.
    """
    context(pair)
    _load(live, pair)


def _load(target: ssl.SSLContext, pair: CertificatePair) -> None:
    """Load a certificate through a file in memory, because Python reads them from files only."""
    text = pair.certificate.rstrip(b"\n") + b"\n" + pair.key
    if not hasattr(os, "memfd_create"):
        with tempfile.NamedTemporaryFile() as file:
            file.write(text)
            file.flush()
            target.load_cert_chain(file.name)
        return
    number = os.memfd_create("engineroom-webhooks", os.MFD_CLOEXEC)
    try:
        with open(number, "wb", closefd=False) as file:
            file.write(text)
        target.load_cert_chain(str(Path("/proc/self/fd") / str(number)))
    finally:
        os.close(number)
