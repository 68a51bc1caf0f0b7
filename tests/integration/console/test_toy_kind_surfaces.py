"""A kind that one file declares, in the API and on the command line, without code of its own."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import pytest_asyncio

from tests import toy_kind
from tests.integration.console.api import ADMIN_PASSWORD
from tests.integration.console.command import Command
from tests.integration.console.process import ApiProcess, api_process
from tests.integration.toys import TOYS, toys_served
from tests.support import extra_kinds

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from engineroom.kube.client.client import Client
    from tests.cluster.api import Cluster
    from tests.support import RedisServer


def make_toy(name: str = "car") -> dict[str, Any]:
    """A toy that names a Secret and has a template, both of which readers must not see."""
    template = {"spec": {"containers": [{"name": "a", "image": "a:1"}]}}
    bell = {"url": "http://bell", "tokenSecretRef": {"name": "bell", "key": "token"}}
    return {
        "apiVersion": "engineroom.dev/v1alpha1",
        "kind": "Toy",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"count": 1, "bells": [bell], "template": template},
    }


@pytest.fixture
def registry() -> Iterator[None]:
    """The registry with the toy, in this process and in those that it starts."""
    with extra_kinds(toy_kind.__name__):
        yield


@pytest_asyncio.fixture
async def toys(registry: None, client: Client, namespace: str) -> AsyncIterator[Client]:
    """An API server that serves toys and has one in the namespace."""
    async with toys_served(client) as serving:
        await serving.create(TOYS, in_namespace(make_toy(), namespace))
        yield serving


def in_namespace(obj: dict[str, Any], namespace: str) -> dict[str, Any]:
    return {**obj, "metadata": {**obj["metadata"], "namespace": namespace}}


@pytest.fixture
def process(
    toys: Client, control_plane: Cluster, redis: RedisServer, tmp_path: Path
) -> Iterator[ApiProcess]:
    with api_process(control_plane.kubeconfig, redis.url, tmp_path / "api.log") as running:
        yield running


@pytest.fixture
def direct(toys: Client, tmp_path: Path, control_plane: Cluster, namespace: str) -> Command:
    """The command line with a kubeconfig."""
    return Command(tmp_path / "home", control_plane.kubeconfig, namespace)


@pytest.fixture
def remote(direct: Command, process: ApiProcess, tmp_path: Path) -> Command:
    """The command line logged in to the API, without a kubeconfig."""
    command = Command(tmp_path / "remote", "/dev/null", direct.namespace)
    command.run(
        "login", "--server", process.url, "--user", "admin", "--password-stdin",
        said=ADMIN_PASSWORD + "\n",
    )  # fmt: skip
    return command


@pytest_asyncio.fixture
async def http(remote: Command, process: ApiProcess) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the API with the administrator's token."""
    servers = json.loads(remote.credentials.read_text())["servers"]
    headers = {"authorization": f"Bearer {servers[process.url]['access']}"}
    base = f"{process.url}/api/v1/namespaces/{remote.namespace}"
    async with httpx.AsyncClient(base_url=base, headers=headers, timeout=20) as client:
        yield client


async def test_the_api_reads_it_without_its_guarded_fields(
    http: httpx.AsyncClient,
) -> None:
    page = (await http.get("/toys")).json()
    assert [item["name"] for item in page["items"]] == ["car"]
    assert page["nextCursor"] is None
    answer = await http.get("/toys/car")
    obj = answer.json()["object"]
    assert obj["spec"]["bells"] == [{}]
    assert "template" not in obj["spec"]
    assert obj["spec"]["count"] == 1
    unchanged = await http.get("/toys/car", headers={"if-none-match": answer.headers["etag"]})
    assert unchanged.status_code == 304
    assert (await http.get("/toys/none")).status_code == 404


async def test_the_api_pages_through_its_objects(
    http: httpx.AsyncClient, toys: Client, namespace: str
) -> None:
    await toys.create(TOYS, in_namespace(make_toy("train"), namespace))
    first = (await http.get("/toys", params={"limit": 1})).json()
    second = (await http.get("/toys", params={"limit": 1, "cursor": first["nextCursor"]})).json()
    assert [item["name"] for item in first["items"] + second["items"]] == ["car", "train"]
    refused = await http.get("/toys", params={"cursor": "made-up"})
    assert refused.status_code == 422


async def test_changes_are_events(http: httpx.AsyncClient, toys: Client, namespace: str) -> None:
    ready = asyncio.Event()

    async def read() -> list[dict[str, Any]]:
        """Read the stream until a toy is gone."""
        events: list[dict[str, Any]] = []
        async with http.stream("GET", "/events") as response:
            name = ""
            async for line in response.aiter_lines():
                field, _, value = line.partition(": ")
                name = value if field == "event" else name
                if name == "reset":
                    ready.set()
                elif field == "data" and name.startswith("toy"):
                    events.append({"event": name, **json.loads(value)})
                    if name == "toy-gone":
                        break
        return events

    reading = asyncio.create_task(read())
    async with asyncio.timeout(60):
        await ready.wait()
        await toys.create(TOYS, in_namespace(make_toy("train"), namespace))
        await toys.delete(TOYS, namespace, "train")
        events = await reading
    assert (events[-1]["event"], events[-1]["name"]) == ("toy-gone", "train")
    assert {event["event"] for event in events[:-1]} == {"toy"}
    assert events[0]["object"]["spec"]["bells"] == [{}]


@pytest.mark.parametrize("way", ["direct", "remote"])
def test_the_command_line_lists_and_explains_it(request: pytest.FixtureRequest, way: str) -> None:
    command: Command = request.getfixturevalue(way)
    header, line = command.run("get", "toys").stdout.splitlines()
    assert (header.split(), line.split()[0]) == (["NAME", "RINGS", "AGE"], "car")
    assert command.json("get", "toy/car")["spec"]["count"] == 1
    assert command.json("get", "ty", "car")["kind"] == "Toy"
    assert command.run("get", "toys", "-o", "name").stdout == "toys.engineroom.dev/car\n"
    assert command.run("get", "toys", "-l", "app=none").stdout == ""
    explained = command.json("explain", "toy", "car")
    assert (explained["name"], explained["state"]) == ("car", "Unseen")
    assert "1 toy, 1 not ready" in command.run("status", code=1 if way == "direct" else 0).stdout
    assert "get toys -A" in command.run("get", "toy/none", code=4).stderr or way == "remote"


@pytest.mark.parametrize(
    ("line", "word", "expected"),
    [("get", "to", "toys"), ("get toys", "", "car"), ("explain", "toy/", "toy/car")],
)
def test_the_shell_completes_it(direct: Command, line: str, word: str, expected: str) -> None:
    words = f"engineroom {line} -n {direct.namespace} {word}"
    done = direct.run(
        COMP_WORDS=words, COMP_CWORD=str(len(words.split(" ")) - 1),
        _ENGINEROOM_COMPLETE="complete_bash",
    )  # fmt: skip
    assert expected in done.stdout.split()
