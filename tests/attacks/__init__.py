"""The attack walk: random objects by authors with random rights, on a real API server."""
