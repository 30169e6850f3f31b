"""What the two kinds that end share: stages, the attempts at them, and what becomes of these."""
