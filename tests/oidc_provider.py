"""A real OIDC provider for tests, and a browser without a screen that signs in at it.

The provider is npm's certified ``oidc-provider``, installed by its lock file into the cache outside
the checkout. What it prints as warnings (http, pages for development) is what a test wants of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

import httpx

from tests.cluster.paths import cache_directory
from tests.support import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_SOURCE = ROOT / "tests/oidc"
_LISTS = ("package.json", "package-lock.json")


def installed() -> Path:
    """Where the provider is, installed if it was not yet; once for all processes."""
    digest = hashlib.sha256(b"".join((_SOURCE / name).read_bytes() for name in _LISTS))
    place = cache_directory() / "npm" / digest.hexdigest()[:16]
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "made").exists():
            for name in _LISTS:
                shutil.copyfile(_SOURCE / name, place / name)
            command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            made = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
            if made.returncode:
                raise RuntimeError(f"the OIDC provider cannot be installed:\n{made.stderr[-2000:]}")
            (place / "made").touch()
        shutil.copyfile(_SOURCE / "provider.mjs", place / "provider.mjs")
    return place


class Provider:
    """One that runs; ``people`` are those whom it knows, by their subject."""

    def __init__(self, clients: list[dict[str, Any]], *, claims_in_id_token: bool = True) -> None:
        told = {"clients": clients, "claimsInIdToken": claims_in_id_token}
        self._process = subprocess.Popen(
            ["node", "provider.mjs", json.dumps(told)],
            cwd=installed(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={"PATH": os.environ["PATH"], "NODE_ENV": "production"},
        )
        self.issuer = self._line()
        while not self.issuer.startswith("http"):  # a warning of the provider's own
            self.issuer = self._line()

    def know(self, people: Mapping[str, Mapping[str, Any]]) -> None:
        """Set the claims of people, from their next sign-in on."""
        self._tell({"people": people})

    def rotate(self, name: str) -> None:
        """Sign with new keys; the old ones stay published."""
        self._tell({"rotate": name})

    def stop(self) -> None:
        """End it; it answers nobody from now on."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process.wait(10)

    def _tell(self, what: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        while self._line() != "done":
            pass

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the OIDC provider ended; run it by hand to see why")
        return line.strip()


@contextlib.contextmanager
def provider(
    clients: list[dict[str, Any]], *, claims_in_id_token: bool = True
) -> Iterator[Provider]:
    """A running provider for the length of a ``with`` block."""
    running = Provider(clients, claims_in_id_token=claims_in_id_token)
    try:
        yield running
    finally:
        running.stop()


class _Form(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.action: str | None = None
        self.fields: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = {name: value or "" for name, value in attrs}
        if tag == "form" and self.action is None:
            self.action = said.get("action", "")
        elif tag in {"input", "button"} and said.get("name"):
            self.fields[said["name"]] = said.get("value", "")


class Browser:
    """Follows redirects and fills in forms; keeps cookies as a browser does."""

    def __init__(self, app: Any, site: str = "https://api.test") -> None:
        self.site = site
        transport = httpx.ASGITransport(app, raise_app_exceptions=True)
        self.http = httpx.AsyncClient(
            mounts={site: transport, "http://127.0.0.1": httpx.AsyncHTTPTransport()},
            base_url=site,
        )

    async def aclose(self) -> None:
        await self.http.aclose()

    async def start(self, path: str = "/api/v1/oidc/start") -> httpx.Response:
        """The answer of the API that sends the browser to the provider."""
        return await self.http.get(path)

    async def sign_in(self, who: str, path: str = "/api/v1/oidc/start") -> httpx.Response:
        """The whole way, up to the answer of the API's callback, not followed."""
        return await self.http.get(await self.at_provider(who, await self.start(path)))

    async def at_provider(self, who: str, started: httpx.Response) -> str:
        """Through the provider's pages: the URL of the callback, where the browser was not yet."""
        assert started.status_code == 303, started.text
        url = started.headers["location"]
        for _ in range(20):
            if url.startswith(self.site):
                return url
            page = await self.http.get(url)
            if page.is_redirect:
                url = urljoin(url, page.headers["location"])
                continue
            form = _Form()
            form.feed(page.text)
            assert page.status_code == 200, page.text
            assert form.action, page.text
            given = {"login": who, "password": "anything"}
            fields = {name: given.get(name, value) for name, value in form.fields.items()}
            sent = await self.http.post(urljoin(url, form.action), data=fields)
            assert sent.is_redirect, sent.text
            url = urljoin(url, sent.headers["location"])
        raise AssertionError("the provider's pages lead nowhere")
