"""Calls to Redis: the Lua scripts, batches of requests, clients and their circuit breaker."""
