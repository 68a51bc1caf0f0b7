"""Several changes as one: units of work inside a process, sagas across crashes.

What cannot be atomic is not said to be: systems that share no transaction (PostgreSQL and Redis,
Kubernetes and anything) commit one after the other, and a crash between two commits leaves the
first done. Where that matters use a saga, which finishes or undoes after the crash.
"""
