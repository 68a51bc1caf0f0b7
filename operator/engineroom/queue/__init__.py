"""RQ's keys in Redis: names, observation, recovery, and commands to workers."""
