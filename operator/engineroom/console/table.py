"""Every route of the API; nothing is served that does not stand here."""

from __future__ import annotations

from engineroom.console import (
    identity,
    jobs,
    manifests,
    meta,
    objects,
    pools,
    records,
    signin,
    stream,
)

ROUTES = (
    *meta.ROUTES,
    *identity.ROUTES,
    *signin.ROUTES,
    *pools.ROUTES,
    *objects.ROUTES,
    *jobs.ROUTES,
    *manifests.ROUTES,
    *records.ROUTES,
    *stream.ROUTES,
)
