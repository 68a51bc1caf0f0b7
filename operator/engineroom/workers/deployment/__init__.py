"""The objects of a pool: its Deployment and what stands beside it, written and read."""
