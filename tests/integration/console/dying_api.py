"""The API process, which dies by SIGKILL when it has done its work and would keep the answer."""

from __future__ import annotations

import os
import signal
from typing import Any

from engineroom.console.main import main
from engineroom.console.rest.idempotency import Idempotency


async def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    Idempotency.keep = die  # type: ignore[method-assign]
    main()
