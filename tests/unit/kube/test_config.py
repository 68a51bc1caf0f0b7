"""Kubeconfigs and service accounts."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import pytest

from engineroom.kube.client import config
from engineroom.kube.client.errors import ClientConfigError

if TYPE_CHECKING:
    from pathlib import Path


def document(**user: Any) -> dict[str, Any]:
    return {
        "current-context": "one",
        "contexts": [
            {"name": "one", "context": {"cluster": "c", "user": "u", "namespace": "shop"}},
            {"name": "two", "context": {"cluster": "c"}},
        ],
        "clusters": [{"name": "c", "cluster": {"server": "https://api:6443/"}}],
        "users": [{"name": "u", "user": user}],
    }


def written(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_the_current_context_is_used_unless_another_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "config", document(token="secret"))
    loaded = config.from_kubeconfig(path)
    assert (loaded.server, loaded.namespace) == ("https://api:6443", "shop")
    assert loaded.read_token() == "secret"
    other = config.from_kubeconfig(path, "two")
    assert (other.namespace, other.read_token()) == ("default", None)


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    path = written(tmp_path / "config", document(token="hunter2", password="hunter3"))
    assert "hunter" not in repr(config.from_kubeconfig(path))


def test_data_and_files_relative_to_the_kubeconfig_are_read(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_bytes(b"KEY")
    (tmp_path / "token").write_text("from a file\n")
    content = document(
        **{
            "client-certificate-data": base64.b64encode(b"CERT").decode(),
            "client-key": "key.pem",
            "tokenFile": "token",
        }
    )
    loaded = config.from_kubeconfig(written(tmp_path / "config", content))
    assert (loaded.certificate, loaded.private_key) == (b"CERT", b"KEY")
    assert loaded.read_token() == "from a file"
    (tmp_path / "token").write_text("renewed")
    assert loaded.read_token() == "renewed"


def test_of_several_files_the_first_to_name_a_thing_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = written(tmp_path / "first", {"users": [{"name": "u", "user": {"token": "from first"}}]})
    second = written(tmp_path / "second", document(token="from second"))
    monkeypatch.setenv("KUBECONFIG", f"{first}:{tmp_path / 'missing'}:{second}")
    assert config.load().read_token() == "from first"


@pytest.mark.parametrize("way", ["exec", "auth-provider"])
def test_sign_in_by_plugins_is_refused_with_a_way_out(tmp_path: Path, way: str) -> None:
    path = written(tmp_path / "config", document(**{way: {"command": "x"}}))
    with pytest.raises(ClientConfigError, match=f"by {way}, which is not supported; use a token"):
        config.from_kubeconfig(path)


def test_a_missing_file_context_or_user_is_said_by_name(tmp_path: Path) -> None:
    with pytest.raises(ClientConfigError, match="set KUBECONFIG"):
        config.from_kubeconfig(tmp_path / "none")
    path = written(tmp_path / "config", document())
    with pytest.raises(ClientConfigError, match="no context 'three'; it has: one, two"):
        config.from_kubeconfig(path, "three")
    path.write_text(": not yaml : [")
    with pytest.raises(ClientConfigError, match="cannot read the kubeconfig"):
        config.from_kubeconfig(path)


def test_a_pod_uses_its_service_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    with pytest.raises(ClientConfigError, match="not inside a pod"):
        config.in_cluster(tmp_path)
    (tmp_path / "token").write_text("t1")
    (tmp_path / "ca.crt").write_text("CA")
    (tmp_path / "namespace").write_text("engineroom")
    loaded = config.in_cluster(tmp_path)
    assert loaded.server == "https://[fd00::1]:443"
    assert loaded.namespace == "engineroom"
    assert loaded.read_ca() == b"CA"
    (tmp_path / "token").unlink()
    with pytest.raises(ClientConfigError, match="cannot read the token file"):
        loaded.read_token()


def test_plain_http_needs_no_certificates() -> None:
    assert config.ApiConfig("http://127.0.0.1:1").ssl_context() is None


def test_an_unusable_client_certificate_is_said_so() -> None:
    made = config.ApiConfig("https://x", certificate=b"no", private_key=b"no")
    with pytest.raises(ClientConfigError, match="client certificate"):
        made.ssl_context()
