"""The API process, which dies by SIGKILL after its work and before it stores the response."""

from __future__ import annotations

import os
import signal
from typing import Any

from engineroom.console.idempotency import Idempotency
from engineroom.console.main import main


async def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    Idempotency.store = die  # type: ignore[method-assign]
    main()
