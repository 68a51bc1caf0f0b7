"""The loop of a background task: a step, a pause, until the process stops."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from engineroom.core.errors import EngineroomError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


async def repeat(
    step: Callable[[], Awaitable[object]],
    seconds: float,
    stopping: asyncio.Event,
    log: Any,
    failure: str,
) -> None:
    """Run ``step`` every ``seconds`` until ``stopping`` is set; log an error as ``failure``."""
    while not stopping.is_set():
        try:
            await step()
        except EngineroomError as error:
            log.warning(failure, code=error.code, error=str(error))
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await stopping.wait()
