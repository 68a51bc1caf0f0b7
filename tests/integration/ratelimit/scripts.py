"""The project's scripts with the time handed in: only here, by replacing their text.

The real ones have no argument for the time. States are kept for an hour, so that Redis's own time
does not remove what by the test's time still counts.
"""

from __future__ import annotations

from engineroom.ratelimit.limits import algorithms

_CLOCK = "local now = tonumber(table.remove(ARGV))\n"
_LIFETIME = "local function lifetime(matters) return 3600000 end\n"


def timed(script: str) -> str:
    """The script taking ``now`` in microseconds as its last argument."""
    assert script.count(algorithms.CLOCK) == 1
    assert script.count(algorithms.LIFETIME) == 1
    return script.replace(algorithms.CLOCK, _CLOCK).replace(algorithms.LIFETIME, _LIFETIME)
