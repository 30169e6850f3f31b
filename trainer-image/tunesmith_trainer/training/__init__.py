"""A training: its processes, what they share, and what is found out before it."""
