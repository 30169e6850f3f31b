"""Tunesmith: a Kubernetes operator that takes a language model from a dataset to a gated, served endpoint."""

__version__ = "0.1.0"
