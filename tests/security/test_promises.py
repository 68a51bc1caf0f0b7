"""What the documentation shows works, and the library is as light as it says."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

from tests.support import ROOT

if TYPE_CHECKING:
    import pytest
    from redis.asyncio import Redis

_MODULES = sorted(
    ".".join(path.relative_to(ROOT / "operator").with_suffix("").parts)
    for path in (ROOT / "operator/engineroom/auth").rglob("*.py")
    if path.stem != "__init__"
)


async def test_the_example_in_the_documentation_works(
    redis: Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    # The other one is tested where there is a provider: test_oidc.
    example, _ = re.findall(r"```python\n(.*?)```", (ROOT / "docs/auth.md").read_text(), re.DOTALL)
    source = (
        "async def example():\n" + textwrap.indent(example, "    ") + "    return guarded, new\n"
    )
    names: dict[str, Any] = {"redis": redis, "secret": b"s" * 32, "pepper": b"p" * 32}
    exec(compile(source, "docs/auth.md", "exec"), names)  # noqa: S102 - our own page
    guarded, new = await names["example"]()
    assert capsys.readouterr().out.strip() == new.secret
    for credential, status in ((new.secret, 200), ("erk_x", 401)):
        sent: list[Any] = []

        async def send(message: Any, sent: list[Any] = sent) -> None:
            sent.append(message)

        headers = [(b"authorization", f"Bearer {credential}".encode())]
        scope = {"type": "http", "method": "GET", "path": "/", "headers": headers}
        await guarded(scope, None, send)
        assert sent[0]["status"] == status


def test_every_module_comes_without_kopf_kubernetes_and_a_web_framework() -> None:
    code = (
        f"import sys, importlib\nfor m in {_MODULES!r}: importlib.import_module(m)\n"
        "bad = {'kopf', 'kubernetes', 'aiohttp', 'starlette'}\n"
        "bad |= {'jwt', 'argon2', 'h11', 'redis', 'structlog'}  # slow: when first used\n"
        "print(sorted(bad & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_error_codes_are_unique() -> None:
    from engineroom.auth import errors
    from engineroom.core.errors import EngineroomError

    codes = [
        kind.code
        for kind in vars(errors).values()
        if isinstance(kind, type)
        and issubclass(kind, EngineroomError)
        and kind.__module__ == errors.__name__
    ]
    assert len(codes) == len(set(codes)) > 10
