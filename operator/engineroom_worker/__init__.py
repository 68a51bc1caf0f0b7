"""The runtime that Engineroom puts into users' images: an RQ worker that never drops a job.

Imports the standard library and what is in the user's image already (RQ, redis-py) and nothing
else, and stays importable on Python 3.9.  ``python -m engineroom_worker`` is its only entry point;
it is configured by the environment (see ``config``).
"""

from engineroom_worker.version import VERSION

__all__ = ["VERSION"]
