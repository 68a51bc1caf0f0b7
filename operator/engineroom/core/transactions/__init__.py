"""Transactions over several systems: units of work in one process, sagas across crashes.

A unit of work is not atomic across systems that share no transaction (PostgreSQL and Redis, or
Kubernetes and anything): they commit one after the other, and a crash between two commits leaves
the first one committed. Use a saga where that matters: it finishes or undoes after the crash.
"""
