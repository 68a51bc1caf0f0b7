"""Rate limits in the application: policies, algorithms, limiters, leases, middleware."""
