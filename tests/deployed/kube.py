"""Reads and writes objects of a cluster as dictionaries, without using the code under test."""

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
    """The API server refused a request; `status` is the HTTP status, `reason` the Kubernetes
    reason.
    """

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
        """Get an object. Raises KubeError."""
        return self._request("GET", self.path(plural, namespace, name))

    def find(self, plural: str, namespace: str | None, name: str) -> Object | None:
        """Get an object, or None if it does not exist."""
        try:
            return self.get(plural, namespace, name)
        except KubeError as error:
            if error.status == 404:
                return None
            raise

    def all(self, plural: str, namespace: str | None = None, *, selector: str = "") -> list[Object]:
        """List the objects that match the selector."""
        query = {"labelSelector": selector} if selector else {}
        return list(self._request("GET", self.path(plural, namespace), query=query)["items"])

    def create(self, plural: str, namespace: str | None, body: Object) -> Object:
        """Create an object."""
        return self._request("POST", self.path(plural, namespace), body)

    def apply(self, plural: str, namespace: str | None, body: Object) -> Object:
        """Apply an object by server-side apply."""
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
        """Delete an object, if it exists."""
        query = {"propagationPolicy": "Background"}
        if grace is not None:
            query["gracePeriodSeconds"] = str(grace)
        try:
            self._request("DELETE", self.path(plural, namespace, name), query=query)
        except KubeError as error:
            if error.status != 404:
                raise

    def logs(self, namespace: str, pod: str, container: str, *, previous: bool = False) -> str:
        """Return the log of a container."""
        path = self.path("pods", namespace, pod) + "/log"
        query = {"container": container, "previous": str(previous).lower()}
        return self._send("GET", path, None, query, "application/json", None).decode()

    def watch(
        self, plural: str, namespace: str | None, version: str, *, field_selector: str = ""
    ) -> Iterator[tuple[str, Object]]:
        """Yield changes after `version` until the server closes the watch."""
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
        """Request a service account token, valid for an hour, as a pod has it."""
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        path = self.path("serviceaccounts", namespace, account) + "/token"
        return str(self._request("POST", path, body)["status"]["token"])

    @staticmethod
    def path(plural: str, namespace: str | None, name: str = "") -> str:
        """Return the API path of a resource."""
        parts = ["", _GROUPS.get(plural, "api/v1")]
        if namespace is not None:
            parts += ["namespaces", namespace]
        parts.append(plural)
        if name:
            parts.append(name)
        return "/".join(parts)

    def raw(self, path: str) -> str:
        """Return the body of a GET as text, for metrics and the like."""
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
    """Poll `look` until it returns a value other than None and False, and return it.

    Raises AssertionError with the text of `what` after `seconds`. Connection failures are retried,
    because tests inject faults.
    """
    deadline = time.monotonic() + seconds
    last: Exception | None = None
    while True:
        try:
            result = look()
            last = None
        except _NOT_YET as error:
            result, last = None, error
        if result is not None and result is not False:
            return result
        if time.monotonic() > deadline:
            text = what() if callable(what) else what
            raise AssertionError(
                f"not within {seconds:g} s: {text}" + (f" ({last})" if last else "")
            )
        time.sleep(every)


def condition(thing: Object, kind: str) -> Object:
    """Return a condition of an object's status, or an empty one."""
    for entry in thing.get("status", {}).get("conditions", []):
        if entry["type"] == kind:
            return dict(entry)
    return {"type": kind, "status": "", "reason": "", "message": ""}
