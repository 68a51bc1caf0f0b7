"""Calls to Redis: the Lua scripts, the clients and their circuit breaker."""
