"""Taking a job off a queue: the scripts, the limits, the wait."""
