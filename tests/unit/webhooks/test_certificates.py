"""Certificates over the years, by turning the clock; trust never has a gap."""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography import x509

from engineroom.core.clock import FakeClock
from engineroom.core.errors import ConflictError
from engineroom_webhooks import certificates, tls
from engineroom_webhooks.certificate_manager import ServingCertificate, keep_files, reconcile
from engineroom_webhooks.certificates import (
    RotationPolicy,
    RotationStep,
    StoredCertificates,
    carry_out,
    decide,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

START = datetime(2026, 1, 1, tzinfo=UTC)
DAY = 86400.0
POLICY = RotationPolicy(
    ("webhooks.shop.svc", "127.0.0.1"), 90 * DAY, 730 * DAY, settle=60, retire=900
)


def made(now: datetime = START) -> StoredCertificates:
    return carry_out(RotationStep.CREATE, now, None, POLICY)


def later(days: float = 0, seconds: float = 0) -> datetime:
    return START + timedelta(days=days, seconds=seconds)


# -- the decision -------------------------------------------------------------------------------


def test_nothing_stored_makes_everything() -> None:
    assert decide(START, None, (), None, POLICY).step is RotationStep.CREATE


def test_new_certificate_is_published_and_served() -> None:
    secret = made()

    decision = decide(START, secret, (), None, POLICY)

    assert decision.step is RotationStep.NONE
    assert decision.publish == secret.authority.certificate
    assert decision.serve
    assert not decision.trusted


def test_published_and_served_is_the_fixed_point() -> None:
    secret = made()

    decision = decide(
        later(seconds=1000),
        secret,
        secret.authorities(),
        secret.leaf.certificate,
        POLICY,
    )

    assert decision == certificates.RotationDecision(trusted=True)


def test_leaf_is_renewed_when_a_third_of_its_time_is_left() -> None:
    secret = made()
    state = (secret, secret.authorities(), secret.leaf.certificate, POLICY)

    assert decide(later(days=59), *state).step is RotationStep.NONE
    assert decide(later(days=61), *state).step is RotationStep.RENEW_LEAF


def test_leaf_is_renewed_for_other_names() -> None:
    secret = made()
    other = RotationPolicy(("elsewhere.svc",), 90 * DAY, 730 * DAY, 60, 900)

    decision = decide(START, secret, secret.authorities(), secret.leaf.certificate, other)

    assert decision.step is RotationStep.RENEW_LEAF


def test_next_authority_is_published_and_settles_before_a_leaf_of_it_is_made() -> None:
    now = later(days=500)
    old = made()
    secret = carry_out(RotationStep.RENEW_LEAF, now, old, POLICY)
    serving = secret.leaf.certificate
    published = secret.authorities()
    assert decide(now, secret, published, serving, POLICY).step is RotationStep.ADD_NEXT

    secret = carry_out(RotationStep.ADD_NEXT, now, secret, POLICY)
    decision = decide(now, secret, published, serving, POLICY)
    assert (decision.step, decision.serve) == (RotationStep.NONE, False)
    assert decision.publish == b"".join(secret.authorities())

    published = secret.authorities()
    assert decide(now, secret, published, serving, POLICY).step is RotationStep.MARK_NEXT
    secret = carry_out(RotationStep.MARK_NEXT, now, secret, POLICY)
    assert (
        decide(now + timedelta(seconds=59), secret, published, serving, POLICY).step
        is RotationStep.NONE
    )
    now += timedelta(seconds=61)
    assert decide(now, secret, published, serving, POLICY).step is RotationStep.PROMOTE

    secret = carry_out(RotationStep.PROMOTE, now, secret, POLICY)
    decision = decide(now, secret, published, serving, POLICY)
    assert decision.trusted
    assert set(certificates.split_bundle(b"".join(published))) == set(published)
    now += timedelta(seconds=61)
    assert decide(now, secret, published, serving, POLICY).serve


def test_next_authority_that_cannot_be_published_is_not_used() -> None:
    now = later(days=500)
    secret = carry_out(RotationStep.ADD_NEXT, now, made(), POLICY)
    secret = carry_out(RotationStep.RENEW_LEAF, now, secret, POLICY)
    only_old = (secret.authority.certificate,)

    for hours in range(0, 48, 6):
        decision = decide(
            now + timedelta(hours=hours), secret, only_old, secret.leaf.certificate, POLICY
        )
        assert decision.step is RotationStep.NONE
        assert decision.publish is not None


def test_lost_secret_is_made_anew_and_the_old_leaf_serves_until_the_new_one_is_trusted() -> None:
    old, new = made(), made(later(days=3))
    now, serving = later(days=3), old.leaf.certificate
    published = old.authorities()

    decision = decide(now, new, published, serving, POLICY)
    assert not decision.serve
    assert decision.trusted
    both = certificates.split_bundle(decision.publish or b"")
    assert set(both) == {old.authority.certificate, new.authority.certificate}

    assert not decide(now, new, both, serving, POLICY).serve
    assert decide(now + timedelta(seconds=61), new, both, serving, POLICY).serve

    after = decide(now + timedelta(seconds=901), new, both, new.leaf.certificate, POLICY)
    assert after.publish == new.authority.certificate


def test_wiped_configuration_is_published_again_at_once() -> None:
    secret = made()

    decision = decide(later(days=9), secret, (), secret.leaf.certificate, POLICY)

    assert decision.publish == secret.authority.certificate
    assert not decision.trusted


@pytest.mark.parametrize("key", ["ca.crt", "ca.key", "tls.crt", "tls.key"])
@pytest.mark.parametrize("value", [None, b"", b"rubbish", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_broken_secret_is_as_none(key: str, value: bytes | None) -> None:
    data = certificates.data_of(made())
    if value is None:
        del data[key]
    else:
        data[key] = value

    assert certificates.stored(data, START) is None


def test_key_of_another_certificate_is_as_none() -> None:
    data = certificates.data_of(made())
    data["tls.key"] = made().leaf.key

    assert certificates.stored(data, START) is None


def test_leaf_of_another_authority_is_as_none() -> None:
    data, other = certificates.data_of(made()), certificates.data_of(made())
    data |= {key: other[key] for key in ("tls.crt", "tls.key")}

    assert certificates.stored(data, START) is None


def test_secret_is_read_back_as_written() -> None:
    secret = carry_out(RotationStep.ADD_NEXT, START, made(), POLICY)
    marked = carry_out(RotationStep.MARK_NEXT, START, secret, POLICY)

    assert certificates.stored(certificates.data_of(secret), START) == secret
    assert certificates.stored(certificates.data_of(marked), START) == marked


def test_keys_are_not_in_what_is_printed() -> None:
    assert "PRIVATE" not in repr(made())


def test_leaf_is_one_that_clients_take() -> None:
    secret = made(datetime.now(UTC))
    server = tls.context(secret.leaf)
    client = ssl.create_default_context(cadata=secret.authority.certificate.decode())

    for name in POLICY.names:
        handshake(client, server, name)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(client, server, "elsewhere.svc")


def test_change_is_seen_by_new_connections_and_a_misfit_changes_nothing() -> None:
    first, second = made(datetime.now(UTC)), made(datetime.now(UTC))
    server = tls.context(first.leaf)
    trusting_first = ssl.create_default_context(cadata=first.authority.certificate.decode())
    trusting_second = ssl.create_default_context(cadata=second.authority.certificate.decode())

    with pytest.raises(ssl.SSLError):
        tls.change(server, certificates.CertificatePair(second.leaf.certificate, first.leaf.key))
    handshake(trusting_first, server, "127.0.0.1")

    tls.change(server, second.leaf)
    handshake(trusting_second, server, "127.0.0.1")


def handshake(client: ssl.SSLContext, server: ssl.SSLContext, name: str) -> None:
    """In memory; raises what the client makes of the server's certificate."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server, server_hostname=name)
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    waiting = [ours, theirs]
    for _ in range(20):
        for side in list(waiting):
            try:
                side.do_handshake()
                waiting.remove(side)
            except ssl.SSLWantReadError:
                continue
    assert not waiting


# -- over the years, with several replicas ------------------------------------------------------


class MemoryStore:
    """Secret and configuration in memory, with versions as the API server keeps them."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self.bundle: bytes = b""
        self.secret_version = 0
        self.configuration_version = 1
        self.writes: list[str] = []

    async def published(self) -> tuple[tuple[bytes, ...] | None, str]:
        return certificates.split_bundle(self.bundle), str(self.configuration_version)

    async def read(self) -> tuple[dict[str, bytes], str]:
        return dict(self.data), str(self.secret_version or "")

    async def write(self, data: dict[str, bytes], version: str) -> None:
        if version != str(self.secret_version or ""):
            raise ConflictError("the Secret changed")
        self.data, self.secret_version = dict(data), self.secret_version + 1
        self.writes.append("secret")

    async def publish(self, bundle: bytes, version: str) -> None:
        if version != str(self.configuration_version):
            raise ConflictError("the configuration changed")
        self.bundle, self.configuration_version = bundle, self.configuration_version + 1
        self.writes.append("bundle")


async def test_three_replicas_over_six_years_are_trusted_at_every_moment() -> None:
    store, clock = MemoryStore(), FakeClock(START)
    replicas = [ServingCertificate() for _ in range(3)]
    authorities, leaves = set(), set()
    # What the API server believes: it learns of a new bundle only with the next look.
    believed: tuple[bytes, ...] = ()
    moment = 0
    while clock.now() < START + timedelta(days=2200):
        for index, replica in enumerate(replicas):
            if (moment + index) % 3 == 2 and replica.serving is not None:
                continue  # one of them is late
            try:
                await reconcile(replica, store, POLICY, clock)
            except ConflictError:
                continue
        if believed:
            for replica in replicas:
                assert replica.serving is not None
                assert any(certificates._signed(replica.serving, ca) for ca in believed)
                end = tls_end(replica.serving)
                assert clock.now() < end
        believed = certificates.split_bundle(store.bundle)
        authorities |= set(believed)
        leaves |= {one.serving for one in replicas}
        moment += 1
        # Quick steps while something is going on, long ones between.
        busy = len(believed) > 1 or b"next-ca.crt" in b"".join(k.encode() for k in store.data)
        clock.advance(30 if busy or moment < 60 else 3 * DAY)

    assert len(authorities) >= 4
    assert len(leaves) >= 25
    assert len(certificates.split_bundle(store.bundle)) == 1


def tls_end(certificate: bytes) -> datetime:
    return x509.load_pem_x509_certificate(certificate).not_valid_after_utc


async def test_nothing_is_written_at_the_fixed_point() -> None:
    store, clock, keeper = MemoryStore(), FakeClock(START), ServingCertificate()
    await reconcile(keeper, store, POLICY, clock)
    clock.advance(1000)
    await reconcile(keeper, store, POLICY, clock)
    before = list(store.writes)

    for _ in range(10):
        clock.advance(15)
        await reconcile(keeper, store, POLICY, clock)

    assert store.writes == before


async def test_who_read_before_another_wrote_does_not_take_trust_back() -> None:
    """A slow replica read the old state; in the meantime the others rotated."""
    store, clock = MemoryStore(), FakeClock(START)
    quick, slow = ServingCertificate(), ServingCertificate()
    await reconcile(quick, store, POLICY, clock)
    await reconcile(slow, store, POLICY, clock)
    clock.advance(500 * DAY)

    class Held(MemoryStore):
        """Reads are from before the rotation; writes go to the real one."""

        async def write(self, data: dict[str, bytes], version: str) -> None:
            await store.write(data, version)

        async def publish(self, bundle: bytes, version: str) -> None:
            await store.publish(bundle, version)

    held = Held()
    held.__dict__.update({**store.__dict__, "bundle": b""})
    for _ in range(12):
        await reconcile(quick, store, POLICY, clock)
        clock.advance(30)
    bundle = store.bundle

    with pytest.raises(ConflictError):
        await reconcile(slow, held, POLICY, clock)

    assert store.bundle == bundle


async def test_files_of_somebody_else_are_read_again_when_they_change(tmp_path: Path) -> None:
    keeper, first, second = ServingCertificate(), made(datetime.now(UTC)), made(datetime.now(UTC))
    (tmp_path / "tls.crt").write_bytes(first.leaf.certificate)
    task = asyncio.create_task(keep_files(keeper, tmp_path, 0.01))
    try:
        await asyncio.sleep(0)
        (tmp_path / "tls.key").write_bytes(first.leaf.key)
        await until(lambda: keeper.serving == first.leaf.certificate)

        (tmp_path / "tls.crt").write_bytes(second.leaf.certificate)
        assert not task.done()
        (tmp_path / "tls.key").write_bytes(second.leaf.key)
        await until(lambda: keeper.serving == second.leaf.certificate)
    finally:
        task.cancel()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  what a folder tells, nobody announces
            await asyncio.sleep(0.01)
