"""Who may do what: tokens, keys, sessions, permissions, audit; for Engineroom and applications.

Needs the extra ``engineroom[auth]``. Import from the modules: each stands alone and is light.
"""
