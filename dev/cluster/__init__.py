"""A real two-node Kubernetes cluster on one Linux machine, for development and tests."""
