"""Decisions a second of the decision service, beside envoyproxy/ratelimit, on one Redis.

Both are loaded in turns, by the same programs: wrk over HTTP, each in the form that proxies would
use (its ``/json``, here ForwardAuth), and both with the same JSON; h2load over gRPC with the same
messages. One key, a thousand, a hundred thousand; none of the requests refused, or nearly all. The
loop is closed. Ratios are of the same turn, and their median is told; with processor time a
decision, which is what tells most where the machine is busy with other things.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import struct
import subprocess
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis

from engineroom.ratelimit.model import Failure, Limit, Policy, Rate
from engineroom.ratelimit.service import rls
from engineroom.ratelimit.sources import Header
from tests.cluster.binaries import path_of
from tests.limiter import LimiterProcess, compiled, get, publish
from tests.performance.outcome import Figure, Goal, outcome
from tests.support import free_port, redis_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support import RedisServer

METHOD = "envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"
#: Connections of wrk; connections of h2load and calls under way on each.
CONNECTIONS, CHANNELS, STREAMS = 64, 4, 16
#: Keys that are rarely met twice; h2load sends one message only.
MANY = 100_000
OPEN, TIGHT = "open", "tight"


@dataclass(frozen=True)
class Load:
    """What came of one load."""

    rate: float
    p99_ms: float
    #: Microseconds of processor time a decision, of the service and of Redis.
    cpu: float
    redis_cpu: float


@dataclass(frozen=True)
class Target:
    """A service under load: where it is and whose processor time counts."""

    url: str
    #: Which form of HTTP it is asked in where there is a choice.
    native: bool
    grpc_port: int
    processor: Callable[[], float]
    domain: Callable[[str], str]


def main() -> int:
    """Run the benchmark and print its line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one load")
    parser.add_argument("--turns", type=int, default=3, help="loads of each kind")
    parser.add_argument("--processes", type=int, default=1, help="processes of the limiter")
    chosen = parser.parse_args()
    seconds = max(1, round(chosen.seconds))
    measured: dict[str, list[Load]] = {}
    with redis_server() as server, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with _ours(server, folder, chosen.processes) as ours, _theirs(server, folder) as theirs:
            for _ in range(chosen.turns):
                for kind, run in _loads(folder, seconds).items():
                    for who, target in (("ours", ours), ("theirs", theirs)):
                        load = _measured(server, target, run)
                        measured.setdefault(f"{kind}_{who}", []).append(load)
                        print(f"{kind} {who}: {load}", flush=True)
    figures: dict[str, Figure] = {"processes": chosen.processes}
    for kind, loads in measured.items():
        figures[f"{kind}_rate"] = round(statistics.median(load.rate for load in loads))
        figures[f"{kind}_p99_ms"] = round(statistics.median(load.p99_ms for load in loads), 2)
        figures[f"{kind}_cpu_us"] = round(statistics.median(load.cpu for load in loads), 1)
        redis_cpu = statistics.median(load.redis_cpu for load in loads)
        figures[f"{kind}_redis_cpu_us"] = round(redis_cpu, 1)
    for kind in _loads(Path(), 1):
        pairs = zip(measured[f"{kind}_ours"], measured[f"{kind}_theirs"], strict=True)
        ratios = [(mine.rate / other.rate, mine.p99_ms / other.p99_ms) for mine, other in pairs]
        figures[f"{kind}_ratio"] = round(statistics.median(ratio for ratio, _ in ratios), 2)
        figures[f"{kind}_p99_ratio"] = round(statistics.median(p99 for _, p99 in ratios), 2)
    return outcome(
        "limiter",
        figures,
        [
            Goal("http_1_ratio", 3.0, at_least=True),
            Goal("http_1_p99_ratio", 1.0),
            Goal("http_100000_ratio", 3.0, at_least=True),
            Goal("http_refused_ratio", 3.0, at_least=True),
            Goal("grpc_1_ratio", 1.5, at_least=True),
            Goal("grpc_refused_ratio", 1.5, at_least=True),
        ],
    )


def _loads(folder: Path, seconds: int) -> dict[str, Callable[[Target], tuple[int, float, float]]]:
    """Loads by name: each gives how many were answered, a second, and the p99 in ms."""
    return {
        "http_1": lambda target: _wrk(folder, target, OPEN, 1, seconds),
        "http_1000": lambda target: _wrk(folder, target, OPEN, 1000, seconds),
        "http_100000": lambda target: _wrk(folder, target, OPEN, MANY, seconds),
        "http_refused": lambda target: _wrk(folder, target, TIGHT, 1, seconds),
        "json_1": lambda target: _wrk(folder, target, OPEN, 1, seconds, as_json=True),
        "grpc_1": lambda target: _h2load(folder, target, OPEN, seconds),
        "grpc_refused": lambda target: _h2load(folder, target, TIGHT, seconds),
    }


def _measured(
    server: RedisServer, target: Target, run: Callable[[Target], tuple[int, float, float]]
) -> Load:
    with redis.Redis(port=server.port) as client:
        before, spent = target.processor(), _redis_processor(client)
        done, rate, p99 = run(target)
        cpu = (target.processor() - before) / max(1, done) * 1e6
        redis_cpu = (_redis_processor(client) - spent) / max(1, done) * 1e6
        return Load(round(rate), p99, round(cpu, 1), round(redis_cpu, 1))


def _redis_processor(client: redis.Redis) -> float:
    told: Any = client.info("cpu")
    return float(told["used_cpu_user"]) + float(told["used_cpu_sys"])


@contextmanager
def _ours(server: RedisServer, folder: Path, processes: int) -> Iterator[Target]:
    failure = Failure(timeout=2.0)
    open_ = Limit("all", Rate(1_000_000, 1), burst=500_000_000, key=(Header("x-api-key"),))
    tight = Limit("all", Rate(1, 60), key=(Header("x-api-key"),))
    with redis.Redis(port=server.port) as client:
        policies = [Policy(f"bench/{OPEN}", (open_,), failure)]
        policies.append(Policy(f"bench/{TIGHT}", (tight,), failure))
        publish(client, [compiled(policy) for policy in policies])
    log = folder / "limiter.log"
    process = LimiterProcess(server.url, log, namespaces="bench", processes=str(processes))
    try:
        process.start()
        yield Target(
            process.url, True, process.grpc_port, process.processor, lambda name: f"bench/{name}"
        )
    finally:
        process.stop()


@contextmanager
def _theirs(server: RedisServer, folder: Path) -> Iterator[Target]:
    config = folder / "runtime/ratelimit/config"
    config.mkdir(parents=True)
    for name, unit, requests in ((OPEN, "second", 1_000_000_000), (TIGHT, "minute", 1)):
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
        url = f"http://127.0.0.1:{ports['PORT']}"
        yield Target(url, False, ports["GRPC_PORT"], processor, lambda name: name)
    finally:
        process.terminate()
        process.wait(10)


def _wrk(
    folder: Path, target: Target, name: str, keys: int, seconds: int, *, as_json: bool = False
) -> tuple[int, float, float]:
    script = folder / "load.lua"
    if target.native and not as_json:
        path = f"/v1/forward/{target.domain(name)}"
        script.write_text(
            "request = function() return wrk.format('GET', nil, {['X-Api-Key'] = 'k' .. "
            f"math.random({keys})}}) end\n"
        )
    else:
        path = "/json"
        script.write_text(_json_script(target.domain(name), keys))
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency", "-s", str(script)]
    said = subprocess.run(
        [*command, target.url + path], capture_output=True, text=True, check=True
    ).stdout
    done = re.search(r"(\d+) requests in", said)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", said)
    p99 = re.search(r"99%\s+([\d.]+)(us|ms|s)", said)
    assert done, said
    assert rate, said
    assert p99, said
    scale = {"us": 0.001, "ms": 1.0, "s": 1000.0}[p99[2]]
    return int(done[1]), float(rate[1]), float(p99[1]) * scale


def _json_script(domain: str, keys: int) -> str:
    """The same number of requests whatever they say: a body is put together from three strings."""
    entry = {"key": "x-api-key", "value": "KEY"}
    body = json.dumps({"domain": domain, "descriptors": [{"entries": [entry]}]})
    before, after = body.split("KEY")
    return (
        f"request = function() return wrk.format('POST', nil, nil, '{before}k' .. "
        f"math.random({keys}) .. '{after}') end\n"
    )


def _h2load(folder: Path, target: Target, name: str, seconds: int) -> tuple[int, float, float]:
    request = rls.RateLimitRequest(domain=target.domain(name))
    request.descriptors.add().entries.add(key=b"x-api-key", value=b"k1")
    message = request.SerializeToString()
    body, log = folder / "body", folder / "times"
    body.write_bytes(struct.pack(">BI", 0, len(message)) + message)
    log.unlink(missing_ok=True)
    command = [
        *("h2load", "-t1", f"-c{CHANNELS}", f"-m{STREAMS}", f"-D{seconds}", "-d", str(body)),
        *("-H", "content-type: application/grpc", "-H", "te: trailers", f"--log-file={log}"),
        f"http://127.0.0.1:{target.grpc_port}/{METHOD}",
    ]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    done = re.search(r"requests: (\d+) total.* (\d+) succeeded", said)
    rate = re.search(r"finished in [\d.]+\w+, ([\d.]+) req/s", said)
    assert done, said
    assert rate, said
    # Start, status and microseconds of each.
    times = sorted(int(line.split("\t")[2]) for line in log.read_text().splitlines())
    return int(done[2]), float(rate[1]), times[int(len(times) * 0.99)] / 1000


if __name__ == "__main__":
    raise SystemExit(main())
