"""Encryption of records in a store that other programs can read and write."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os

_NONCE_BYTES = 12


class RecordCipher:
    """AES-256-GCM under a key that is derived from ``secret`` for one ``purpose``.

    The name of a record is authenticated with it: a record under another name cannot be decrypted.
    """

    def __init__(self, secret: bytes, purpose: bytes) -> None:
        """``secret`` has at least 32 bytes, ``purpose`` at most 16. Raises ValueError."""
        if len(secret) < 32:
            msg = "secret: must be at least 32 bytes; make one with openssl rand -base64 48"
            raise ValueError(msg)
        self._key = hashlib.blake2b(secret, digest_size=32, person=purpose).digest()

    def encrypt(self, name: str, content: bytes) -> str:
        """Return the content of the record ``name``, encrypted, in Base64."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        nonce = os.urandom(_NONCE_BYTES)
        encrypted = AESGCM(self._key).encrypt(nonce, content, name.encode())
        return base64.b64encode(nonce + encrypted).decode()

    def decrypt(self, name: str, encrypted: str) -> bytes | None:
        """Return the content of the record ``name``; None if it has been changed or replaced."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        try:
            raw = base64.b64decode(encrypted, validate=True)
            return AESGCM(self._key).decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], name.encode())
        except (InvalidTag, ValueError, binascii.Error):
            return None
