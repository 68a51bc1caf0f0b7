"""The runtime that Engineroom copies into users' images: an RQ worker that loses no job.

It imports only the standard library and what the user's image contains (RQ, redis-py), and runs on
Python 3.9 and newer. ``python -m engineroom_worker`` is its only entry point; the environment
configures it (see ``config``).
"""

from engineroom_worker.version import VERSION

__all__ = ["VERSION"]
