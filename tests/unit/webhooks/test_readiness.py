"""Nobody is sent to a server that cannot answer yet."""

from __future__ import annotations

import ssl

from engineroom_webhooks.certificate_manager import Keeper
from engineroom_webhooks.process import unready


def test_each_reason_has_its_turn() -> None:
    keeper = Keeper()
    assert unready(keeper, listening=False, ending=False) == "no certificate yet"
    keeper.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    keeper.trusted = True
    # Another replica's certificate may be trusted long before this one's socket is open.
    assert unready(keeper, listening=False, ending=False) == "not listening yet"
    assert unready(keeper, listening=True, ending=False) == ""
    assert unready(keeper, listening=True, ending=True) == "going out of use"
    keeper.trusted = False
    assert "not published" in unready(keeper, listening=True, ending=False)
