"""All routes of the API."""

from __future__ import annotations

from engineroom.api import kinds
from engineroom.console.identity import (
    api_keys,
    login_links,
    oidc,
    sessions,
    signing_keys,
    tokens,
    users,
    whoami,
)
from engineroom.console.resources import (
    audit,
    bulk,
    drain,
    events,
    explain,
    jobs,
    manifests,
    objects,
    pools,
    queues,
    schedules,
)
from engineroom.console.rest import meta

ROUTES = (
    *meta.ROUTES,
    *whoami.ROUTES,
    *sessions.ROUTES,
    *tokens.ROUTES,
    *api_keys.ROUTES,
    *login_links.ROUTES,
    *signing_keys.ROUTES,
    *oidc.ROUTES,
    *users.ROUTES,
    *objects.routes_of(kinds.registry()),
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
    *events.ROUTES,
)
