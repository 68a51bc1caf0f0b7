"""Input that others wrote: documents, requests, files. Everything here is bounded."""
