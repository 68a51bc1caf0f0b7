"""Every route of the API; nothing is served that does not stand here."""

from __future__ import annotations

from engineroom.console import identity, jobs, manifests, meta, pools, records, stream

ROUTES = (
    *meta.ROUTES,
    *identity.ROUTES,
    *pools.ROUTES,
    *jobs.ROUTES,
    *manifests.ROUTES,
    *records.ROUTES,
    *stream.ROUTES,
)
