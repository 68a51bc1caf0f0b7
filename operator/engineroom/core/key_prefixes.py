"""Prefixes of the keys that Engineroom writes to Redis.

One list of all rooms' prefixes shows which are in use. A prefix begins with another one only where
it is built from it. Stored data depends on the values, so they never change.

``engineroom_worker.key_prefixes`` repeats those that workers use. Lua scripts write the prefixes
out; a test compares both with this module.
"""

from __future__ import annotations

# Queues, jobs and workers; engineroom.queue.keys describes the keys.
POOL_WORKERS = "engineroom:workers:"
POOL_SUSPENDED = "engineroom:suspended:"
PAUSED = "engineroom:paused:"
EMPTYING = "engineroom:emptying:"
LIMIT = "engineroom:limit:"
LIMITED = "engineroom:limited:"
HELD = "engineroom:held:"
HOLDING = "engineroom:holding:"
SLOTS = "engineroom:slots:"
RATE = "engineroom:rate:"
DRAIN = "engineroom:drain:"
STATS = "engineroom:stats:"
CRASHES = "engineroom:crashes:"
SETTLE = "engineroom:settle:"
SETTLING = "engineroom:settling:"
STRAYS = "engineroom:intermediate:"
REDIS_IDENTITY = "engineroom:identity"
QUEUE_OWNERS = "engineroom:owners"

# Tasks.
UNIQUE = "engineroom:unique:"
RELAYED = "engineroom:relayed:"
RELAY = "engineroom:relay"
PROGRESS = "engineroom:progress:"
REQUEUE = "engineroom:requeue:"
SCHEDULES = "engineroom:schedules"
SCHEDULE = "engineroom:schedule:"

# Rate limiting: buckets of limits, and policies for enforcers.
RATE_LIMITS = "er:rl"
RATE_LIMIT_POLICIES = "er:rlp:"

# Transactions: the braces map all keys of a log to one cluster slot.
SAGAS = "{engineroom:sagas}"
UNITS = "{engineroom:units}"

# Authentication.
AUTH = "engineroom:auth"
AUDIT = f"{AUTH}:audit"
SIGN_IN_ATTEMPTS = f"{AUTH}:tries"
LOGIN_LINKS = f"{AUTH}:link"
SESSIONS = f"{AUTH}:session"
OIDC = f"{AUTH}:oidc"
API_KEYS = f"{AUTH}:apikey"
REVOCATIONS = f"{AUTH}:revoked"
SIGNING_KEYS = f"{AUTH}:keys"

# The console.
CONSOLE_API = "engineroom:api"
HOUSEKEEPING = f"{CONSOLE_API}:upkeep"
OIDC_HINTS = f"{CONSOLE_API}:oidc-hint:"
OPERATIONS = "engineroom:console:operation"
IDEMPOTENCY = "engineroom:console:once"
MANIFESTS = "engineroom:console:manifests"
