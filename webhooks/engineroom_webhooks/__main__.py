"""``python -m engineroom_webhooks``: settings come from ENGINEROOM_WEBHOOKS_* variables."""

from __future__ import annotations

import asyncio
import sys

from pydantic import ValidationError

from engineroom.core import logging
from engineroom.core.errors import EngineroomError
from engineroom_webhooks.process import run
from engineroom_webhooks.settings import Settings


def main() -> int:
    """Run until SIGTERM; return 2 if the settings are invalid, 1 if the server cannot run."""
    try:
        settings = Settings()
    except ValidationError as error:
        for detail in error.errors(include_url=False, include_input=False):
            place = "_".join(str(part) for part in detail["loc"]).upper()
            print(f"ENGINEROOM_WEBHOOKS_{place}: {detail['msg']}", file=sys.stderr)
        return 2
    logging.configure(
        settings.log_level,
        settings.log_format,
        repeat=(settings.log_repeat, logging.REPEAT_SECONDS),
    )
    try:
        asyncio.run(run(settings))
    except EngineroomError as error:
        logging.get_logger(__name__).error("the admission server cannot run", error=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
