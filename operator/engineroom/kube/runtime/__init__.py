"""The runtime of an operator process: watches, caches, work queues, leases, events."""
