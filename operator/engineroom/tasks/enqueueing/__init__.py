"""Putting jobs on queues: single jobs, batches, flows, dependents."""
