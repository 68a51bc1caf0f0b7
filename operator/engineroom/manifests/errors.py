"""What goes wrong with a transaction of manifests."""

from __future__ import annotations

from engineroom.core.errors import ConflictError


class ManifestUndoneError(ConflictError):
    """One object could not be applied, so all others were put back as they were."""

    code = "manifest_undone"
    retryable = False


class ManifestChangedError(ConflictError):
    """An object was changed or made by somebody else after it was read; apply again."""

    code = "manifest_changed"
    retryable = False
