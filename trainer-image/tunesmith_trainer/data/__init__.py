"""Rows of data: read, checked, and made into tokens."""
