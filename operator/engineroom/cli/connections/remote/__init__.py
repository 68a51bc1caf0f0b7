"""The way through the API process: where it is, who asks, and what it answers."""
