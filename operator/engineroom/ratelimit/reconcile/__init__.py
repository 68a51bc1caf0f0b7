"""The RateLimitPolicy controller: observe, decide, program documents, write status."""
