"""The ways in which serving can fail, and the exit code of each (sysexits.h, docs/contract.md)."""

EXIT_CODES = {
    "SourceNotFound": 64,
    "InvalidOverrides": 64,
    "InvalidSettings": 64,
    "InvalidModel": 65,
    "UnsafeWeights": 65,
    "DigestMismatch": 65,
    "StoreUnavailable": 69,
    "DeviceUnavailable": 69,
    "EngineFailed": 70,
    "InternalError": 70,
}


class ServeError(Exception):
    """A failure with a reason that the operator knows and a message that tells the user what to do."""

    def __init__(self, reason: str, message: str) -> None:
        """Take a reason out of EXIT_CODES and a message; any other reason is a bug (KeyError)."""
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.exit_code = EXIT_CODES[reason]
