"""Nobody is sent to a server that cannot answer yet."""

from __future__ import annotations

import ssl

from engineroom_webhooks.certificate_manager import ServingCertificate
from engineroom_webhooks.process import unready


def test_each_reason_has_its_turn() -> None:
    serving_certificate = ServingCertificate()
    assert unready(serving_certificate, listening=False, ending=False) == "no certificate yet"
    serving_certificate.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving_certificate.trusted = True
    # Another replica's certificate may be trusted long before this one's socket is open.
    assert unready(serving_certificate, listening=False, ending=False) == "not listening yet"
    assert unready(serving_certificate, listening=True, ending=False) == ""
    assert unready(serving_certificate, listening=True, ending=True) == "draining"
    serving_certificate.trusted = False
    assert "not published" in unready(serving_certificate, listening=True, ending=False)
