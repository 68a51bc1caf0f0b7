"""Every route of the API; nothing is served that does not stand here."""

from __future__ import annotations

from engineroom.console import (
    bulk,
    drain,
    explain,
    identity,
    jobs,
    manifests,
    meta,
    objects,
    oidc,
    pools,
    queues,
    records,
    schedules,
    signin,
    signing,
    stream,
    users,
)

ROUTES = (
    *meta.ROUTES,
    *identity.ROUTES,
    *signin.ROUTES,
    *signing.ROUTES,
    *oidc.ROUTES,
    *users.ROUTES,
    *pools.ROUTES,
    *explain.ROUTES,
    *objects.ROUTES,
    *drain.ROUTES,
    *queues.ROUTES,
    *jobs.ROUTES,
    *bulk.ROUTES,
    *schedules.ROUTES,
    *manifests.ROUTES,
    *records.ROUTES,
    *stream.ROUTES,
)
