"""Jobs of the runtime's tests. Imported by the workers' interpreter: RQ and nothing else.

Each says in Redis that it ran, in a list that nobody else touches.
"""

import os
import pathlib
import time

from rq import get_current_job


def _ran(what="ran"):
    job = get_current_job()
    job.connection.rpush(f"test:{what}", job.id)
    return job


def noop():
    return None


def ran():
    _ran()


def add(a, b):
    _ran()
    return a + b


def nap(seconds):
    job = _ran("begun")
    time.sleep(seconds)
    job.connection.rpush("test:ran", job.id)
    return seconds


def wait_for_release():
    """Run until the test sets the key ``test:released``."""
    job = _ran("begun")
    while not job.connection.exists("test:released"):
        time.sleep(0.02)
    job.connection.rpush("test:ran", job.id)


def spin(seconds):
    """Keeps the processor busy."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def nap_quietly(seconds, begun):
    """Touches Redis only before its nap, through a file for the test to see."""
    with pathlib.Path(begun).open("a") as stream:
        stream.write("begun\n")
    time.sleep(seconds)
    return seconds


def boom_quietly(seconds, begun):
    nap_quietly(seconds, begun)
    raise RuntimeError("boom")


def boom():
    _ran()
    raise RuntimeError("boom")


def boom_until(times):
    job = _ran()
    if job.connection.incr("test:booms") <= times:
        raise RuntimeError("boom")
    return "fine"


def again(times):
    """Enqueues itself under its own id while it runs."""
    from rq import Queue

    job = _ran()
    if job.connection.incr("test:agains") < times:
        Queue(job.origin, connection=job.connection).enqueue(again, times, job_id=job.id)
    return "done"


def suicide():
    _ran()
    os.kill(os.getpid(), 9)


def sleep_and_spawn(path):
    """Leaves an orphan behind, as a careless job does."""
    import subprocess
    import sys

    _ran()
    subprocess.Popen([sys.executable, "-c", "pass"])


def on_success(job, connection, result):
    connection.rpush("test:success", job.id)


def on_failure(job, connection, *exc_info):
    connection.rpush("test:failure", job.id)


def on_stopped(job, connection):
    connection.rpush("test:stopped", job.id)
