"""The blocks of specs, the types of statuses, and conditions."""
