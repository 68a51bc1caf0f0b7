"""Accounts, sign-in and credentials of the API process."""
