"""Accounts: the declared ones, users of the OIDC provider, and the permissions of both."""
