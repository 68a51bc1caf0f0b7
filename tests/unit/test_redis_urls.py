"""Redis URLs: problems and displayed forms repeat no part of a password."""

from __future__ import annotations

import pytest

from engineroom.core.errors import SecretError
from engineroom.redis.address import check_url
from engineroom.redis.urls import displayed_url, url_problem


@pytest.mark.parametrize(
    ("url", "displayed"),
    [
        ("redis://host", "redis://host"),
        ("redis://:secret@host:6379/0", "redis://host:6379"),
        ("rediss://user:sec%2Fret@host/1?timeout=3", "rediss://host"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
    ],
)
def test_a_valid_url_is_displayed_without_user_and_password(url: str, displayed: str) -> None:
    assert url_problem(url) == ""
    assert displayed_url(url) == displayed
    assert check_url(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "redis://:sec/ret@host",
        "redis://:sec#ret@host",
        "redis://:sec?ret@host",
        "redis://user/secret@host:6379/0",
        "redis://:12/secret@host",
        "redis://u:secret@host:secret/0",
        "redis://u:secret@[host/0",
        "redis://u:secret@host/secret",
        "secret:6379",
        "secret",
        "http://u:secret@host",
        "redis://u:secret@",
        "",
    ],
)
def test_an_invalid_url_has_a_problem_that_repeats_nothing_of_it(url: str) -> None:
    with pytest.raises(SecretError) as raised:
        check_url(url)
    message = str(raised.value)
    assert message.startswith("the Redis URL is invalid: ")
    assert displayed_url(url) == "an invalid URL"
    for part in ("secret", "sec", "ret", "12"):
        assert part not in message.replace("percent", "")
