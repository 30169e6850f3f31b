"""How a variant is made, and what was done to it."""
