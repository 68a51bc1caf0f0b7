"""The decision service: decides on requests of proxies and programs over HTTP and gRPC.

Needs ``engineroom[limiter]``. One process is one event loop; ``main`` starts several on one port.
"""
