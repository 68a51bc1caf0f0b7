"""Reading and changing queues, jobs, failures and workers in Redis."""
