"""The project's scripts with the time handed in: only here, by replacing their text.

The real ones have no argument for the time. States are kept for an hour, so that Redis's own time
does not remove what by the test's time still counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engineroom.ratelimit.limits.redis_calls import lua_scripts

if TYPE_CHECKING:
    from engineroom.redis.scripts import Script

_CLOCK = "local now = tonumber(table.remove(ARGV))\n"
_LIFETIME = "local function lifetime(matters) return 3600000 end\n"


def timed(script: Script) -> str:
    """Return the script with ``now`` in microseconds as an additional last argument."""
    source = script.source
    assert source.count(lua_scripts.CLOCK) == 1
    assert source.count(lua_scripts.LIFETIME) == 1
    return source.replace(lua_scripts.CLOCK, _CLOCK).replace(lua_scripts.LIFETIME, _LIFETIME)
