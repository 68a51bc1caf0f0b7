"""Sign-in of users: passwords, lockout, one-time links, sessions."""
