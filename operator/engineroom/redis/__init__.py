"""Redis connections: addresses, pipelining, the circuit breaker, scripts."""
