"""Calls to Redis: the Lua scripts and the clients."""
