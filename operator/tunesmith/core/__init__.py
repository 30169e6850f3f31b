"""Values, errors and comparisons that know nothing of Kubernetes' objects."""
