"""Rate limits that hold across processes: algorithms, limiters, leases, middleware.

The library half: needs Redis and nothing of Kubernetes.
"""
