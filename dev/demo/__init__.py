"""The demo: one apply takes a real model from a dataset to a gated endpoint. The end-to-end tests drive the same code."""
