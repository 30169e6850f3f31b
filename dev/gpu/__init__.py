"""What only a GPU can show, as one script (smoke.py), and what a machine without one can show of it."""
