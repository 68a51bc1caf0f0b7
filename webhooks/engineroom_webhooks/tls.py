"""The TLS context of the server; its certificate is changed while connections come and go."""

from __future__ import annotations

import os
import ssl
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engineroom_webhooks.certificates import Pair


def context(pair: Pair) -> ssl.SSLContext:
    """A server context that uses ``pair``; raises ssl.SSLError when the two do not fit."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    # A ticket would let a client come back without seeing the new certificate.
    made.options |= ssl.OP_NO_TICKET
    made.num_tickets = 0
    _load(made, pair)
    return made


def change(live: ssl.SSLContext, pair: Pair) -> None:
    """Let new connections on ``live`` see ``pair``; those that are open stay as they are.

    To be called in the event loop's thread, where no handshake can come between. Raises
    ssl.SSLError, with ``live`` unchanged, when certificate and key do not fit.
    """
    context(pair)
    _load(live, pair)


def _load(target: ssl.SSLContext, pair: Pair) -> None:
    """Python takes certificates from files only: give it one that is in memory alone."""
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
