"""Tenancy of Redis servers: namespaces that may use one, and the owners of its queues."""
