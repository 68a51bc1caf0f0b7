"""Every route of the API; nothing is served that does not stand here."""

from __future__ import annotations

from engineroom.console.identity import identity, login_links, oidc, signing_keys, users
from engineroom.console.resources import (
    audit,
    bulk,
    drain,
    explain,
    jobs,
    manifests,
    objects,
    pools,
    queues,
    schedules,
)
from engineroom.console.rest import meta, stream

ROUTES = (
    *meta.ROUTES,
    *identity.ROUTES,
    *login_links.ROUTES,
    *signing_keys.ROUTES,
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
    *audit.ROUTES,
    *stream.ROUTES,
)
