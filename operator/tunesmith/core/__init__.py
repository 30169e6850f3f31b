"""Plain objects and values, errors, and comparisons, on which all other folders rest."""
