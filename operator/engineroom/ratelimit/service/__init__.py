"""The decision service: proxies and programs in any language ask it over HTTP and gRPC.

Needs ``engineroom[limiter]``. One process is one event loop; ``main`` starts several on one port.
"""
