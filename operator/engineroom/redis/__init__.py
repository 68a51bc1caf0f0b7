"""Redis connections: addresses, pipelining, the circuit breaker, error translation."""
