"""Commands on queues, jobs, schedules and workers."""
