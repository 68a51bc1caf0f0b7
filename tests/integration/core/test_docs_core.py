"""The examples of docs/core.md run, and the library is light."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from typing import Any

import redis.asyncio

from tests.support import ROOT, redis_server

EXAMPLES = re.findall(
    r"^```python\n(.*?)^```", (ROOT / "docs/core.md").read_text(), re.MULTILINE | re.DOTALL
)


def test_the_examples_run() -> None:
    assert len(EXAMPLES) >= 6
    names: dict[str, Any] = {}
    for example in EXAMPLES:
        names = {}
        exec(example, names)  # noqa: S102 - the project's own page
        if "main" in names:

            async def main(function: Any) -> None:
                async with redis.asyncio.Redis.from_url(server.url) as client:
                    await function(client)

            with redis_server() as server:
                asyncio.run(main(names["main"]))


def test_the_library_loads_nothing_of_the_cluster() -> None:
    code = (
        "import sys, engineroom.core.recovery, engineroom.core.error_responses,"
        " engineroom.core.context,"
        " engineroom.core.transactions.sagalog, engineroom.core.transactions.participants,"
        " engineroom.core.validation.files, engineroom.core.validation.requests,"
        " engineroom.core.validation.documents\n"
        "print([name for name in ('kopf', 'kubernetes', 'aiohttp', 'psycopg', 'sqlalchemy',"
        " 'prometheus_client', 'rq', 'redis') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
