"""Every route of the API; nothing is served that does not stand here."""

from __future__ import annotations

from engineroom.console import identity, jobs, manifests, meta, oidc, pools, records, stream, users

ROUTES = (
    *meta.ROUTES,
    *identity.ROUTES,
    *oidc.ROUTES,
    *users.ROUTES,
    *pools.ROUTES,
    *jobs.ROUTES,
    *manifests.ROUTES,
    *records.ROUTES,
    *stream.ROUTES,
)
