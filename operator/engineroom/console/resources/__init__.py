"""Resources of the REST API, one module a domain."""
