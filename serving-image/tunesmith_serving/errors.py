"""The ways in which serving can fail; `tunesmith_contract.reasons` has their exit codes."""

from tunesmith_contract.reasons import EXIT_CODES


class ServeError(Exception):
    """A failure with a reason that the operator knows and a message that tells the user what to do."""

    def __init__(self, reason: str, message: str) -> None:
        """Take a reason out of EXIT_CODES and a message; any other reason is a bug (KeyError)."""
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.exit_code = EXIT_CODES[reason]
