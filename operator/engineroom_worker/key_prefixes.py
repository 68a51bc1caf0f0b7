"""Prefixes of Engineroom's keys in Redis, as ``engineroom.core.key_prefixes`` defines them.

This package must not import ``engineroom``; a test compares the values.
"""

from __future__ import annotations

POOL_WORKERS = "engineroom:workers:"
POOL_SUSPENDED = "engineroom:suspended:"
PAUSED = "engineroom:paused:"
LIMIT = "engineroom:limit:"
LIMITED = "engineroom:limited:"
HOLDING = "engineroom:holding:"
SLOTS = "engineroom:slots:"
DRAIN = "engineroom:drain:"
STATS = "engineroom:stats:"
SETTLE = "engineroom:settle:"
SETTLING = "engineroom:settling:"
STRAYS = "engineroom:intermediate:"
