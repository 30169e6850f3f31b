"""The reasons that stages end with, and the exit code of each (sysexits.h, docs/contract.md)."""

from __future__ import annotations

BAD_SETTINGS, BAD_DATA, UNAVAILABLE, SOFTWARE, INTERRUPTED = 64, 65, 69, 70, 75

EXIT_CODES = {
    "SourceNotFound": BAD_SETTINGS,
    "InvalidOverrides": BAD_SETTINGS,
    "GroupSizeMismatch": BAD_SETTINGS,
    "SequenceTooLong": BAD_SETTINGS,
    "UnsupportedTemplate": BAD_SETTINGS,
    "InvalidSettings": BAD_SETTINGS,
    "InsufficientMemory": BAD_SETTINGS,
    "InvalidModel": BAD_DATA,
    "InvalidDataset": BAD_DATA,
    "EmptyDataset": BAD_DATA,
    "UnsafeWeights": BAD_DATA,
    "RemoteCodeRefused": BAD_DATA,
    "DigestMismatch": BAD_DATA,
    "NoEffect": BAD_DATA,
    "OutputDiffers": BAD_DATA,
    "Diverged": BAD_DATA,
    "StoreUnavailable": UNAVAILABLE,
    "StorageFull": UNAVAILABLE,
    "PeerUnavailable": UNAVAILABLE,
    "Hung": UNAVAILABLE,
    "DeviceUnavailable": UNAVAILABLE,
    "DeviceFailed": UNAVAILABLE,
    "CommunicationFailed": UNAVAILABLE,
    "OutOfMemory": SOFTWARE,
    "ProcessLost": SOFTWARE,
    "EngineFailed": SOFTWARE,
    "InternalError": SOFTWARE,
    "Interrupted": INTERRUPTED,
    "Superseded": INTERRUPTED,
}
