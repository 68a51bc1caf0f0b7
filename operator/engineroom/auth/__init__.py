"""Authentication and authorization: tokens, keys, sessions, permissions, audit log.

Used by Engineroom and by applications. Needs the extra ``engineroom[auth]``. Import from the
modules: each one works alone.
"""
