"""The cluster's objects as plain dictionaries, read and written without the code under test."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, TypeVar

import redis
import urllib3
from kubernetes import client, config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Object = dict[str, Any]
T = TypeVar("T")

_GROUPS = {
    "deployments": "apis/apps/v1",
    "statefulsets": "apis/apps/v1",
    "replicasets": "apis/apps/v1",
    "jobs": "apis/batch/v1",
    "leases": "apis/coordination.k8s.io/v1",
    **dict.fromkeys(
        ("roles", "rolebindings", "clusterroles", "clusterrolebindings"),
        "apis/rbac.authorization.k8s.io/v1",
    ),
    "poddisruptionbudgets": "apis/policy/v1",
    "workerpools": "apis/engineroom.dev/v1alpha1",
    "ratelimitpolicies": "apis/engineroom.dev/v1alpha1",
    "scaledobjects": "apis/keda.sh/v1alpha1",
    "customresourcedefinitions": "apis/apiextensions.k8s.io/v1",
    "validatingwebhookconfigurations": "apis/admissionregistration.k8s.io/v1",
}


class KubeError(Exception):
    """The API server refused; `status` is HTTP's, `reason` Kubernetes'."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason


_NOT_YET = (
    OSError,
    KubeError,
    client.ApiException,
    urllib3.exceptions.HTTPError,
    redis.RedisError,
)


class Kube:
    """A client of one cluster. Safe to share between threads."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        self._api: Any = config.new_client_from_config(str(kubeconfig))  # type: ignore[no-untyped-call]

    def get(self, plural: str, namespace: str | None, name: str) -> Object:
        """One object. Raises KubeError."""
        return self._request("GET", self.path(plural, namespace, name))

    def find(self, plural: str, namespace: str | None, name: str) -> Object | None:
        """One object, or None where there is none."""
        try:
            return self.get(plural, namespace, name)
        except KubeError as error:
            if error.status == 404:
                return None
            raise

    def all(self, plural: str, namespace: str | None = None, *, selector: str = "") -> list[Object]:
        """All objects that the selector matches."""
        query = {"labelSelector": selector} if selector else {}
        return list(self._request("GET", self.path(plural, namespace), query=query)["items"])

    def create(self, plural: str, namespace: str | None, body: Object) -> Object:
        """Create one object."""
        return self._request("POST", self.path(plural, namespace), body)

    def apply(self, plural: str, namespace: str | None, body: Object) -> Object:
        """Make the object be as given, by server-side apply as a user's tool would."""
        name = body["metadata"]["name"]
        query = {"fieldManager": "engineroom-tests", "force": "true"}
        media = "application/apply-patch+yaml"
        return self._request("PATCH", self.path(plural, namespace, name), body, query, media)

    def patch(
        self, plural: str, namespace: str | None, name: str, body: Object, subresource: str = ""
    ) -> Object:
        """Merge a patch into an object or its subresource."""
        path = self.path(plural, namespace, name) + (f"/{subresource}" if subresource else "")
        return self._request("PATCH", path, body, media="application/merge-patch+json")

    def delete(
        self, plural: str, namespace: str | None, name: str, *, grace: int | None = None
    ) -> None:
        """Delete an object; one that is not there is fine."""
        query = {"propagationPolicy": "Background"}
        if grace is not None:
            query["gracePeriodSeconds"] = str(grace)
        try:
            self._request("DELETE", self.path(plural, namespace, name), query=query)
        except KubeError as error:
            if error.status != 404:
                raise

    def logs(self, namespace: str, pod: str, container: str, *, previous: bool = False) -> str:
        """What a container has written."""
        path = self.path("pods", namespace, pod) + "/log"
        query = {"container": container, "previous": str(previous).lower()}
        return self._send("GET", path, None, query, "application/json", None).decode()

    def watch(
        self, plural: str, namespace: str | None, version: str, *, field_selector: str = ""
    ) -> Iterator[tuple[str, Object]]:
        """Changes after `version`, as they come; ends when the server ends it."""
        query = [("watch", "true"), ("resourceVersion", version)]
        if field_selector:
            query.append(("fieldSelector", field_selector))
        response = self._open("GET", self.path(plural, namespace), None, query, None, 3600)
        rest = b""
        try:
            for chunk in response.stream(65536):
                rest += chunk
                *lines, rest = rest.split(b"\n")
                for line in lines:
                    event = json.loads(line)
                    yield event["type"], event["object"]
        except urllib3.exceptions.HTTPError:  # cut off: an end like any other
            return

    def token(self, namespace: str, account: str) -> str:
        """A token of a service account, as a pod gets it; for an hour."""
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        path = self.path("serviceaccounts", namespace, account) + "/token"
        return str(self._request("POST", path, body)["status"]["token"])

    @staticmethod
    def path(plural: str, namespace: str | None, name: str = "") -> str:
        """Where the API server keeps objects of a kind."""
        parts = ["", _GROUPS.get(plural, "api/v1")]
        if namespace is not None:
            parts += ["namespaces", namespace]
        parts.append(plural)
        if name:
            parts.append(name)
        return "/".join(parts)

    def raw(self, path: str) -> str:
        """The answer to a GET, as text: metrics and the like."""
        return self._send("GET", path, None, {}, None, None).decode()

    def _request(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        query: dict[str, str] | None = None,
        media: str = "application/json",
    ) -> Object:
        return dict(json.loads(self._send(method, path, body, query or {}, media, 30) or b"{}"))

    def _send(
        self,
        method: str,
        path: str,
        body: Object | None,
        query: dict[str, str],
        media: str | None,
        timeout: float | None,
    ) -> bytes:
        response = self._open(method, path, body, list(query.items()), media, timeout)
        data = bytes(response.read())
        if response.status >= 300:
            try:
                status = json.loads(data)
            except ValueError:
                status = {"message": data.decode(errors="replace")}
            raise KubeError(response.status, status.get("reason", ""), status.get("message", ""))
        return data

    def _open(
        self,
        method: str,
        path: str,
        body: Object | None,
        query: list[tuple[str, str]],
        media: str | None,
        timeout: float | None,
    ) -> Any:
        headers: dict[str, str] = {"Accept": "application/json, */*"}
        if media is not None:
            headers["Content-Type"] = media
        method, url, headers, payload, _ = self._api.param_serialize(
            method,
            path,
            query_params=query,
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
        )
        answer = self._api.call_api(method, url, headers, payload, _request_timeout=timeout)
        return answer.response


def wait_for(
    look: Callable[[], T | None], seconds: float, what: str | Callable[[], str], every: float = 0.2
) -> T:
    """What `look` returns once that is neither None nor False.

    Raises AssertionError naming `what` after `seconds`. Failures to reach the server count as
    not yet: faults are part of these tests.
    """
    deadline = time.monotonic() + seconds
    last: Exception | None = None
    while True:
        try:
            found = look()
            last = None
        except _NOT_YET as error:
            found, last = None, error
        if found is not None and found is not False:
            return found
        if time.monotonic() > deadline:
            text = what() if callable(what) else what
            raise AssertionError(
                f"not within {seconds:g} s: {text}" + (f" ({last})" if last else "")
            )
        time.sleep(every)


def condition(thing: Object, kind: str) -> Object:
    """A condition of an object's status; an empty one where it has none."""
    for found in thing.get("status", {}).get("conditions", []):
        if found["type"] == kind:
            return dict(found)
    return {"type": kind, "status": "", "reason": "", "message": ""}
