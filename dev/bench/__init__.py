"""Benchmarks on real components; each prints its figures and the conditions they were measured under."""
