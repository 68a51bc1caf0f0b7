"""The Kubernetes client: configuration, requests, resources, errors."""
