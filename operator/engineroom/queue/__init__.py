"""RQ and its keys, read without side effects."""
