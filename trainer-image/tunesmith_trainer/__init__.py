"""The trainer image: prepares data, trains, finalizes, quantizes, evaluates and compares language models.

What it is given and what it answers is written down in docs/contract.md.
"""
