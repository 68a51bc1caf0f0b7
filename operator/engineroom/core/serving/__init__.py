"""Parts of servers: budgets of connections, and a small server of probes and metrics."""
