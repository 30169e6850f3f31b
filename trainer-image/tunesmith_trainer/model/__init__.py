"""A model's folder: what is in it, whether it is whole, and what it says."""
