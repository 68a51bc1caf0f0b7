"""Errors of a transaction of manifests."""

from __future__ import annotations

from engineroom.core.errors import ConflictError


class ManifestUndoneError(ConflictError):
    """One object could not be applied, so all others were restored."""

    code = "manifest_undone"
    retryable = False


class ManifestChangedError(ConflictError):
    """Another client changed or created an object after it was read; apply again."""

    code = "manifest_changed"
    retryable = False
