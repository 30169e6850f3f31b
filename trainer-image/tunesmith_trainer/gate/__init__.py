"""The gate: criteria, bounds and outcomes. Pure."""
