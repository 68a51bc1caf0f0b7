"""The RateLimitPolicy controller: observe, decide, status."""
