"""Compiled policies in Redis: the document, its publication, and the follower of each enforcer."""
