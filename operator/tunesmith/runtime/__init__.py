"""The running operator: watches, queue, cache, client, election."""
