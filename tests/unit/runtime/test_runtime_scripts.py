"""What operator and runtime both say, each in its own words because the runtime imports nothing."""

from __future__ import annotations

from engineroom.queue import keys, priority
from engineroom_worker.dequeue import limits
from engineroom_worker.dequeue import priority as runtime


def test_operator_and_runtime_place_jobs_by_the_same_script():
    assert runtime.PUT == priority.PUT


def test_operator_and_runtime_mean_the_same_keys():
    assert limits.limit_key("mail") == keys.limit("mail")
    assert limits.limited_key("mail") == keys.limited("mail")
    assert limits.slots_key("customer") == keys.slots("customer")
