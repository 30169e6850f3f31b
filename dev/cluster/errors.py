"""The one exception that the command line turns into a sentence and exit status 1."""


class ClusterError(Exception):
    """Something the user can act on; its text is one clear sentence."""
