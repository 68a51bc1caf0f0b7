"""The decision service beside envoyproxy/ratelimit, on one Redis, in turns under the same loads.

Both may use the whole machine: envoyproxy/ratelimit as it runs by default, a thread a core, and the
limiter with a process a core; besides the limiter as one process. Over HTTP each is asked in the
form that a proxy would use, its ``/json`` and ours of Traefik; over gRPC with the same messages.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis

from engineroom.ratelimit.limits.model import Failure, Limit, Policy, Rate
from engineroom.ratelimit.limits.sources import Header
from tests.cluster.binaries import path_of
from tests.limiter import LimiterProcess, compiled, get, publish
from tests.performance.outcome import Figure, Goal
from tests.performance.rates import driver
from tests.support import ROOT, free_port, redis_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support import RedisServer

#: Connections of HTTP; connections of gRPC and calls under way on each.
CONNECTIONS, CHANNELS, STREAMS = 64, 8, 8
#: Requests a second at the fixed rate: what either takes easily.
FIXED_RATE = 4000
#: Share of answers that may be errors, as of a Redis that is late on a busy machine.
_MOST_FAILED = 0.001
OPEN, TIGHT = "open", "tight"
OURS, ALONE, THEIRS = "ours", "one_process", "theirs"


@dataclass(frozen=True)
class Load:
    """A load: over what, which keys, how many refused, closed loop or so many a second."""

    protocol: str
    keys: int
    zipf: bool = False
    refused: float = 0.0
    rate: int = 0

    @property
    def name(self) -> str:
        """As figures call it."""
        parts = [self.protocol, f"{self.keys}"]
        parts += ["zipf"] if self.zipf else []
        parts += [f"{self.refused:.0%}".replace("%", "_refused")] if self.refused else []
        parts += ["fixed_rate"] if self.rate else []
        return "_".join(parts)


#: The same for both protocols.
_KEYS = ((1, False), (1_000, False), (100_000, False), (100_000, True))
CLOSED = tuple(
    Load(protocol, keys, zipf, refused)
    for protocol in ("http", "grpc")
    for keys, zipf in _KEYS
    for refused in (0.0, 0.5, 0.99)
)
FIXED = tuple(Load(protocol, 1_000, rate=FIXED_RATE) for protocol in ("http", "grpc"))
#: What one process is measured with too.
_FEW = tuple(each for each in CLOSED if each.refused == 0.0 and each.keys in (1, 100_000))


@dataclass(frozen=True)
class Result:
    """What came of a load."""

    rate: float
    p99_ms: float
    refused: float
    #: Microseconds of processor time a decision, of the service, of Redis and of the load.
    cpu: float
    redis_cpu: float
    load_cpu: float
    #: Commands that Redis executed a decision, also those of scripts.
    commands: float

    @property
    def per_second(self) -> float:
        """Decisions a second of processor time, the service's and Redis' together: what tells most
        while the machine has other things to do as well."""
        return 1e6 / max(0.1, self.cpu + self.redis_cpu)


@dataclass(frozen=True)
class Target:
    """A service: where it is, whose processor time counts, and what its domains are called."""

    port: int
    grpc_port: int
    native: bool
    processor: Callable[[], float]
    domain: Callable[[str], str]


def measure(folder: Path, seconds: float, turns: int) -> dict[str, Figure]:
    """All figures of the services."""
    whole = max(1, round(seconds))
    found: dict[tuple[str, str], list[Result]] = {}
    with redis_server() as server, ExitStack() as stack:
        publish_policies(server)
        processes = os.cpu_count() or 1
        targets = {
            OURS: stack.enter_context(_ours(server, folder, processes)),
            ALONE: stack.enter_context(_ours(server, folder, 1)),
            THEIRS: stack.enter_context(_theirs(server, folder)),
        }
        for turn in range(turns):
            for load in (*CLOSED, *FIXED):
                for who, target in targets.items():
                    if who == ALONE and load not in (*_FEW, *FIXED):
                        continue
                    result = _measured(server, folder, target, load, whole)
                    found.setdefault((load.name, who), []).append(result)
                    print(f"{turn + 1}. {load.name} {who}: {result}", flush=True)
        return {"processes": processes} | _figures(found)


def _figures(found: dict[tuple[str, str], list[Result]]) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    for (name, who), results in found.items():
        begin = f"{name}_{who}"
        for field, digits in (
            ("rate", 0), ("p99_ms", 2), ("refused", 3), ("cpu", 1), ("redis_cpu", 1),
            ("load_cpu", 1), ("commands", 2),
        ):  # fmt: skip
            median = statistics.median(getattr(each, field) for each in results)
            figures[f"{begin}_{field}"] = round(median, digits) if digits else round(median)
        if who == THEIRS:
            continue
        # Of each turn, so that what else the machine did in it falls on both.
        pairs = list(zip(results, found[name, THEIRS], strict=True))
        fields = ("p99_ms",) if name.endswith("fixed_rate") else ("rate", "p99_ms", "per_second")
        for field in fields:
            ratios = [getattr(mine, field) / getattr(other, field) for mine, other in pairs]
            figures[f"{begin}_{field}_ratio"] = round(statistics.median(ratios), 2)
    return figures | _summaries(figures)


def _summaries(figures: dict[str, Figure]) -> dict[str, Figure]:
    """Of all keys together, by protocol and share of refusals."""
    summaries: dict[str, Figure] = {}
    for who in (OURS, ALONE):
        for protocol in ("http", "grpc"):
            for share, title in ((0.0, "admitted"), (0.5, "50_refused"), (0.99, "99_refused")):
                loads = [
                    each for each in CLOSED if (each.protocol, each.refused) == (protocol, share)
                ]
                for field, end in (("rate", ""), ("per_second", "_per_second")):
                    names = [f"{each.name}_{who}_{field}_ratio" for each in loads]
                    ratios = [float(figures[name] or 0) for name in names if name in figures]
                    if ratios:
                        mean = statistics.geometric_mean(ratios)
                        summaries[f"{protocol}_{title}_{who}{end}_ratio"] = round(mean, 2)
    return summaries


def goals() -> list[Goal]:
    """What the design asks of the service: of strict limits, which is what is admitted by Redis."""
    return [
        Goal(f"http_admitted_{OURS}_ratio", 3.0, at_least=True),
        Goal(f"http_50_refused_{OURS}_ratio", 3.0, at_least=True),
        Goal(f"http_99_refused_{OURS}_ratio", 3.0, at_least=True),
        Goal(f"{FIXED[0].name}_{OURS}_p99_ms_ratio", 1.0),
        Goal(f"grpc_admitted_{OURS}_ratio", 1.5, at_least=True),
        Goal(f"grpc_50_refused_{OURS}_ratio", 1.5, at_least=True),
        Goal(f"grpc_99_refused_{OURS}_ratio", 1.5, at_least=True),
        Goal(f"{FIXED[1].name}_{OURS}_p99_ms_ratio", 1.0),
    ]


def _measured(
    server: RedisServer, folder: Path, target: Target, load: Load, seconds: int
) -> Result:
    with redis.Redis(port=server.port) as client:
        cpu, spent, commands = target.processor(), _redis_processor(client), _commands(client)
        own = _children_processor()
        said = _driven(folder, target, load, seconds)
        done = max(1, said["done"])
        if said["failed"] > done * _MOST_FAILED:
            raise RuntimeError(f"{load.name}: {said['failed']} of {done} answers were failures")
        return Result(
            round(said["rate"]),
            round(said["p99"], 3),
            round(said["refused"] / done, 3),
            round((target.processor() - cpu) / done * 1e6, 1),
            round((_redis_processor(client) - spent) / done * 1e6, 1),
            round((_children_processor() - own) / done * 1e6, 1),
            round((_commands(client) - commands) / done, 2),
        )


def _redis_processor(client: redis.Redis) -> float:
    told: Any = client.info("cpu")
    return float(told["used_cpu_user"]) + float(told["used_cpu_sys"])


def _commands(client: redis.Redis) -> int:
    told: Any = client.info("commandstats")
    return sum(each["calls"] for name, each in told.items() if name != "cmdstat_info")


def _children_processor() -> float:
    times = os.times()
    return times.children_user + times.children_system


def publish_policies(server: RedisServer) -> None:
    """One limit that is never reached, and one that nearly always is."""
    failure = Failure(timeout=2.0)
    open_ = Limit("all", Rate(1_000_000, 1), burst=500_000_000, key=(Header("x-api-key"),))
    tight = Limit("all", Rate(1, 3600), key=(Header("x-api-key"),))
    with redis.Redis(port=server.port) as client:
        policies = [Policy(f"bench/{OPEN}", (open_,), failure)]
        policies.append(Policy(f"bench/{TIGHT}", (tight,), failure))
        publish(client, [compiled(policy) for policy in policies])


@contextmanager
def _ours(server: RedisServer, folder: Path, processes: int) -> Iterator[Target]:
    log = folder / f"limiter-{processes}.log"
    process = LimiterProcess(server.url, log, namespaces="bench", processes=str(processes))
    try:
        process.start()
        yield Target(
            process.http_port, process.grpc_port, True, process.processor,
            lambda name: f"bench/{name}",
        )  # fmt: skip
    finally:
        process.stop()


@contextmanager
def _theirs(server: RedisServer, folder: Path) -> Iterator[Target]:
    config = folder / "runtime/ratelimit/config"
    config.mkdir(parents=True)
    for name, unit, requests in ((OPEN, "second", 1_000_000_000), (TIGHT, "hour", 1)):
        (config / f"{name}.yaml").write_text(
            f"domain: {name}\ndescriptors:\n  - key: x-api-key\n"
            f"    rate_limit: {{unit: {unit}, requests_per_unit: {requests}}}\n"
        )
    ports = {name: free_port() for name in ("PORT", "GRPC_PORT", "DEBUG_PORT")}
    environment = os.environ | {
        **{name: str(port) for name, port in ports.items()},
        **dict.fromkeys(("HOST", "GRPC_HOST", "DEBUG_HOST"), "127.0.0.1"),
        "REDIS_SOCKET_TYPE": "tcp",
        "REDIS_URL": f"127.0.0.1:{server.port}",
        "RUNTIME_ROOT": str(folder / "runtime"),
        "RUNTIME_SUBDIRECTORY": "ratelimit",
        "RUNTIME_WATCH_ROOT": "false",
        "LOG_LEVEL": "error",
        # Without a sink it would print a line for each decision.
        "DISABLE_STATS": "true",
    }
    process = subprocess.Popen(
        [str(path_of("service_cmd"))],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def processor() -> float:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    try:
        deadline = time.monotonic() + 20
        while get(f"http://127.0.0.1:{ports['PORT']}/healthcheck")[0] != 200:
            if time.monotonic() > deadline or process.poll() is not None:
                raise RuntimeError("envoyproxy/ratelimit does not start")
            time.sleep(0.05)
        yield Target(ports["PORT"], ports["GRPC_PORT"], False, processor, lambda name: name)
    finally:
        process.terminate()
        process.wait(10)


def _driven(folder: Path, target: Target, load: Load, seconds: int) -> dict[str, float]:
    plan = {
        "protocol": load.protocol,
        "port": target.grpc_port if load.protocol == "grpc" else target.port,
        "native": target.native,
        "keys": load.keys,
        "zipf": load.zipf,
        "refused": load.refused,
        "open": target.domain(OPEN),
        "tight": target.domain(TIGHT),
        "rate": load.rate,
        "seconds": seconds,
        "connections": CHANNELS if load.protocol == "grpc" else CONNECTIONS,
        "streams": STREAMS,
    }
    if load.protocol == "grpc" or load.rate:
        command = [sys.executable, "-m", "tests.performance.rates.driver", json.dumps(plan)]
        told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        found: dict[str, float] = json.loads(told.stdout)
        return found
    script, requests = folder / "load.lua", folder / "requests"
    # wrk takes them as they are: what a request says costs it nothing.
    make = driver.native if target.native else driver.as_json
    requests.write_bytes(b"\0".join(make(domain, key) for domain, key in driver.drawn(plan)))
    script.write_text(
        f"local text = io.open('{requests}', 'rb'):read('*a')\n"
        "local requests, at = {}, 0\n"
        "for each in string.gmatch(text, '[^%z]+') do requests[#requests + 1] = each end\n"
        "request = function() at = at % #requests + 1 return requests[at] end\n"
    )
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency", "-s", str(script)]
    said = subprocess.run(
        [*command, f"http://127.0.0.1:{target.port}/"], capture_output=True, text=True, check=True
    ).stdout
    done = re.search(r"(\d+) requests in", said)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", said)
    p99 = re.search(r"99%\s+([\d.]+)(us|ms|s)", said)
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", said)
    failed = re.search(
        r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", said
    )
    assert done, said
    assert rate, said
    assert p99, said
    scale = {"us": 0.001, "ms": 1.0, "s": 1000.0}[p99[2]]
    return {
        "done": int(done[1]),
        "rate": float(rate[1]),
        "p99": float(p99[1]) * scale,
        "refused": int(refused[1]) if refused else 0,
        "failed": sum(map(int, failed.groups())) if failed else 0,
    }
