"""The Kubernetes client at work: apply, watch, leases; nothing of any one kind."""
