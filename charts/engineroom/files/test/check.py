"""What `helm test` runs: does this installation answer, admit, refuse and reach its Redis?

Nothing is created: the objects below are sent as dry runs only.
"""

from __future__ import annotations

import datetime
import json
import os
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
NAMESPACE = os.environ["ENGINEROOM_TEST_NAMESPACE"]
#: Where a pool may be created: the release's own namespace is not always watched.
POOL_NAMESPACE = os.environ["ENGINEROOM_TEST_POOL_NAMESPACE"]
LEASE = os.environ["ENGINEROOM_TEST_LEASE"]
DEADLINE = time.monotonic() + float(os.environ.get("ENGINEROOM_TEST_TIMEOUT", "90"))


class NotYetError(Exception):
    """What was looked for is not there; it may come."""


def request(method: str, path: str, body: object = None) -> tuple[int, Any]:
    """Status and decoded answer of the API server."""
    host = os.environ["KUBERNETES_SERVICE_HOST"]
    host = f"[{host}]" if ":" in host else host
    url = f"https://{host}:{os.environ['KUBERNETES_SERVICE_PORT']}{path}"
    headers = {
        "Authorization": f"Bearer {(ACCOUNT / 'token').read_text()}",
        "Content-Type": "application/json",
    }
    data = None if body is None else json.dumps(body).encode()
    context = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    asked = urllib.request.Request(url, data, headers, method=method)
    try:
        with urllib.request.urlopen(asked, timeout=10, context=context) as answer:  # noqa: S310
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
    except OSError as error:
        raise NotYetError(f"the API server does not answer: {error}") from error


def pool(**autoscaling: object) -> dict[str, Any]:
    """A WorkerPool that is right but for what is given."""
    worker = {"name": "worker", "image": "example.invalid/app:1"}
    return {
        "apiVersion": "engineroom.dev/v1alpha1",
        "kind": "WorkerPool",
        "metadata": {"name": "helm-test", "namespace": POOL_NAMESPACE},
        "spec": {
            "queues": [{"name": "default"}],
            "autoscaling": autoscaling,
            "template": {"spec": {"containers": [worker]}},
        },
    }


def create_dry(thing: dict[str, Any]) -> tuple[int, str]:
    """Status and message of what the API server would answer to a creation."""
    path = f"/apis/engineroom.dev/v1alpha1/namespaces/{POOL_NAMESPACE}/workerpools?dryRun=All"
    status, answer = request("POST", path, thing)
    return status, str(answer.get("message", ""))


def image_runs() -> str:
    """The command line in the image starts."""
    done = subprocess.run(["engineroom", "version"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NotYetError(f"engineroom version failed: {done.stderr.strip()}")
    return done.stdout.strip().splitlines()[0]


def kinds_are_served() -> str:
    """The CRDs are installed and established."""
    status, answer = request("GET", "/apis/engineroom.dev/v1alpha1")
    if status != 200:
        raise NotYetError(
            "the API server does not know engineroom.dev/v1alpha1; are the CRDs installed?"
        )
    names = {resource["name"] for resource in answer["resources"]}
    if "workerpools" not in names:
        raise NotYetError(f"the API server knows {sorted(names)}, but not workerpools")
    return "workerpools.engineroom.dev"


def operator_leads() -> str:
    """A replica of the operator holds the lease and renews it."""
    path = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/{LEASE}"
    status, lease = request("GET", path)
    if status != 200:
        raise NotYetError(f"lease {LEASE}: {lease.get('message')}")
    spec = lease["spec"]
    if not spec.get("holderIdentity") or not spec.get("renewTime"):
        raise NotYetError(f"lease {LEASE} is held by nobody")
    renewed = datetime.datetime.fromisoformat(spec["renewTime"])
    age = (datetime.datetime.now(datetime.UTC) - renewed).total_seconds()
    if age > spec.get("leaseDurationSeconds", 15):
        raise NotYetError(f"{spec['holderIdentity']} last renewed lease {LEASE} {age:.0f} s ago")
    return str(spec["holderIdentity"])


def right_pool_is_admitted() -> str:
    """A WorkerPool without fault passes, but for the rights of this pod.

    The webhook asks for the right to create pods after it has judged the spec. This pod does
    without that right.
    """
    status, message = create_dry(pool())
    if status == 403 and "only authors who may create pods" in message:
        return "dry run, its spec is right"
    if status != 201:
        raise NotYetError(f"a right WorkerPool is not admitted: {status} {message}")
    return "dry run"


def wrong_pool_is_refused() -> str:
    """A fault that no schema can see is found by the webhook."""
    schedule = {"name": "never", "cron": "61 25 * * *", "minReplicas": 1}
    status, message = create_dry(pool(schedules=[schedule]))
    if status < 400:
        raise NotYetError(
            "a WorkerPool with an impossible cron line is admitted; is the webhook there?"
        )
    if "denied the request" not in message or "cron" not in message:
        raise NotYetError(f"refused, but not for its cron line: {message}")
    return message.split("denied the request:")[-1].strip()


def redis_answers() -> str:
    """The chart-wide Redis takes the password."""
    url = os.environ.get("ENGINEROOM_REDIS_URL")
    if not url:
        return "none: every pool names its own"
    import redis

    try:
        connection = redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5)
        connection.ping()
    except redis.RedisError as error:
        raise NotYetError(f"Redis does not answer: {error}") from error
    return "PONG"


def api_answers() -> str:
    """The API has its Redis and has read the pools."""
    url = os.environ["ENGINEROOM_TEST_API"]
    # Its certificate is for the name that people use, not for the Service's.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with urllib.request.urlopen(url, timeout=5, context=context) as answer:  # noqa: S310
            return f"{answer.status} from {url}"
    except OSError as error:
        raise NotYetError(f"{url}: {error}") from error


def wait_for(check: Callable[[], str]) -> bool:
    """Try until it holds or time is up; print how it ended."""
    while True:
        try:
            print(f"ok    {check.__name__.replace('_', ' ')}: {check()}", flush=True)
            return True
        except NotYetError as reason:
            if time.monotonic() > DEADLINE:
                print(f"FAIL  {check.__name__.replace('_', ' ')}: {reason}", flush=True)
                return False
        time.sleep(1)


def main() -> int:
    """Run all checks, also after one has failed: the answer should say all that is wrong."""
    checks: list[Callable[[], str]] = [image_runs, kinds_are_served, operator_leads]
    checks.append(right_pool_is_admitted)
    if os.environ.get("ENGINEROOM_TEST_WEBHOOKS") == "true":
        checks.append(wrong_pool_is_refused)
    checks.append(redis_answers)
    if os.environ.get("ENGINEROOM_TEST_API"):
        checks.append(api_answers)
    return 0 if all([wait_for(check) for check in checks]) else 1  # noqa: C419  every one of them


if __name__ == "__main__":
    sys.exit(main())
