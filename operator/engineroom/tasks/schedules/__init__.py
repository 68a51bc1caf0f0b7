"""Schedules as data in Redis, and the loop that enqueues each tick exactly once.

One script both enqueues a tick and moves the schedule on, and does neither unless the schedule
still waits for exactly that tick in exactly that version. Any number of schedulers may run, and any
may be killed at any step: the tick itself is the token.

A schedule may have an owner, such as the WorkerPool that declares it. Only the owner changes or
removes it. A client without an owner cannot replace an owned schedule, and an owner cannot replace
a schedule without an owner.
"""
