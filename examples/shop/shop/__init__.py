"""A shop whose orders are worked off by RQ."""
