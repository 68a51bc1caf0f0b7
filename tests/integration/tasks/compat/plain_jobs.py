"""Jobs as an application of plain RQ has them; RQ and the standard library, nothing of ours."""

import json

from rq import Retry, get_current_job


def add(left, right=0):
    return left + right


async def later(value):
    return value


def boom():
    raise ValueError("boom")


def fails_until(times):
    job = get_current_job()
    if job.connection.incr(f"tries:{job.id}") <= times:
        raise ValueError("not yet")
    return "at last"


def asks_for_another(times):
    """Retries by returning a Retry, as RQ has it beside raising."""
    job = get_current_job()
    if job.connection.incr(f"tries:{job.id}") <= times:
        return Retry(max=times + 1)
    return "asked"


def meta():
    job = get_current_job()
    job.meta["seen"] = job.meta["given"] * 2
    job.save_meta()
    return job.meta["given"]


def of_parents():
    return sorted(job.return_value() for job in get_current_job().fetch_dependencies())


def tick():
    job = get_current_job()
    return job.connection.incr(f"ticks:{job.id}")


def forever():
    import time

    get_current_job().connection.set("running", 1)
    time.sleep(60)


class Account:
    def __init__(self, name):
        self.name = name

    def greet(self, word):
        return f"{word} {self.name}"

    def __call__(self, word):
        return f"{word}, {self.name}"

    @staticmethod
    def static(word):
        return word.upper()

    @classmethod
    def built(cls, word):
        return cls(word).name


def said(job, connection, *_):
    connection.rpush(f"said:{job.id}", "called")


class Reversed:
    """A serializer of the application's own."""

    @staticmethod
    def dumps(value):
        return json.dumps(value).encode()[::-1]

    @staticmethod
    def loads(data):
        return json.loads(data[::-1])
