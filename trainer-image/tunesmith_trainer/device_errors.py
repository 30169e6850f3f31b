"""What the texts of CUDA, its libraries, NCCL and the memory allocators mean: whose fault it is, and where memory ran out.

Texts only, so that one rule holds for an exception and for what a process wrote last before it was ended (`last_words`). What is
returned of a text is the library's own sentence: it holds no row of the data. A text that says nothing of a device means nothing here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Memory = Literal["Host", "Device"]
SENTENCE_LIMIT = 300


@dataclass(frozen=True)
class Meaning:
    """A reason out of errors.py, the sentence that tells it, and for OutOfMemory which memory ran out."""

    reason: str
    sentence: str
    memory: Memory | None = None


HOST_MEMORY = re.compile(
    r"DefaultCPUAllocator: (?:can't allocate memory|not enough memory)[^\n]*|std::bad_alloc|[^\n]{0,40}Cannot allocate memory[^\n]*"
)
DEVICE_MEMORY = re.compile(r"(?:CUDA|HIP) out of memory[^\n]*")
# What torch says where it finds no device that it can use.
UNAVAILABLE = re.compile(
    r"No CUDA GPUs are available|Found no NVIDIA driver on your system|The NVIDIA driver on your system is too old[^\n]{0,40}"
    r"|CUDA driver initialization failed[^\n]*|CUDA unknown error - this may be due to an incorrectly set up environment"
    r"|Torch not compiled with CUDA enabled|Your setup doesn't support bf16/gpu"
)
# NVML's and the kernel driver's words for a GPU that no longer answers.
LOST = re.compile(r"GPU is lost|GPU has fallen off the bus|NVRM: Xid[^\n]*|Xid \([^\n]*")
# An error of CUDA itself, as torch, NCCL, Triton and bitsandbytes write it: the text is cudaGetErrorString's.
CUDA = re.compile(
    r"CUDA (?:driver )?error: (?P<torch>[^\n]+)|Cuda failure (?:\d+ )?'(?P<nccl>[^'\n]+)'|Triton Error \[CUDA\]: (?P<triton>[^\n]+)"
    r"|^Error (?P<bitsandbytes>[^\n]{1,80}) at line \d+ in file",
    re.MULTILINE,
)
LIBRARY = re.compile(r"\b(?:CUBLAS_STATUS|CUDNN_STATUS|CUSOLVER_STATUS|CUSPARSE_STATUS|CURAND_STATUS|CUFFT)_(?P<status>\w+)")
NCCL = re.compile(
    r"(?:\[Rank \d+\] )?Watchdog caught collective operation timeout[^\n]*|NCCL error[^\n]*|NCCL communicator was aborted[^\n]*"
    r"|NCCL communicator encountered error[^\n]*|NCCL timeout[^\n]*|ProcessGroupNCCL's watchdog got stuck[^\n]*"
    r"|[^\n]*we are taking the entire process down[^\n]*"
)
# What NCCL says when the process at the other end is gone.
NCCL_PEER = re.compile(r"remote process exited|ncclRemoteError|closed by (?:remote )?peer|Connection (?:closed|reset|refused)|Broken pipe")
SHARED_MEMORY = re.compile(r"Error while [^\n]* shared memory segment[^\n]*|failed to create shared memory file[^\n]*")

NO_DEVICE = (
    "initialization error",
    "CUDA driver is a stub library",
    "CUDA driver version is insufficient",
    "API call is not supported in the installed CUDA driver",
    "CUDA-capable device(s) is/are busy or unavailable",
    "no CUDA-capable device is detected",
    "invalid device ordinal",
    "device doesn't have valid Grid license",
    "integrity checks failed",
    "startup failure in cuda runtime",
    "invalid device function",
    "no kernel image is available for execution on the device",
    "exclusive-thread device already in use",
    "the provided PTX was compiled with an unsupported toolchain",
    "PTX JIT compiler library not found",
    "OS call failed or operation not supported on this OS",
    "system not yet initialized",
    "system has unsupported display driver / cuda driver combination",
    "forward compatibility was attempted on non supported HW",
    "MPS client failed to connect",
    "the remote procedural call between the MPS server",
    "MPS server is not ready",
    "the hardware resources required to create MPS client",
    "the hardware resources required to support device connections",
    "the MPS client has been terminated",
)
"""Texts of cudaGetErrorString, by their beginnings: this node's devices or driver cannot be used as they are."""
PROGRAM = re.compile(
    r"invalid (?!program counter|access)|device-side assert|too many|launch (?:failed because|would|uses)|operation not (?:permitted|supported$)"
    r"|the operation cannot|operation (?:failed due to|would)|captur|dependency|attempt to|the graph update|a kernel launch error|one or more"
    r"|the function handle|a PTX JIT compilation|PTX JIT compilation was|device kernel image|named symbol|file not found|shared object|resource"
    r"|array is mapped|peer access|limit is not|incorrect use|part or all|pointer does not|cannot set|profiler|the provided|is using CUDA Dynamic"
    r"|unsupported interaction|tensor memory not|attempted introspection|duplicate|__global__|feature not yet|memory size or|cudaDeviceSynchronize"
    r"|fetch|cannot fetch|texture|linear filtering|read as normalized|device emulation|incompatible driver context",
    re.IGNORECASE,
)
"""Texts, by their beginnings, of what the program asked for and no device could do. Any other is a device's or a driver's fault until it is
met on a second node: a bug may cause an illegal memory access, and does so on another node too."""
# Of a library's status: the call was wrong, wherever it is made.
PROGRAM_STATUS = re.compile(r"INVALID|BAD_PARAM|NOT_SUPPORTED|UNSUPPORTED|NOT_IMPLEMENTED|UNALIGNED|VERSION|SUBLIBRARY|DEPRECATED|LICENSE|ZERO_PIVOT")
SYMPTOMS = ("CommunicationFailed", "PeerUnavailable")
"""Reasons of one that only lost another process, or the connection to it; the more telling first."""


def meaning(text: str) -> Meaning | None:
    """Return what a library's text means, None where it says nothing of devices, NCCL or memory.

    InternalError: an error of CUDA that the program brings on itself on any device, as an index out of range (`device-side assert
    triggered`).
    """
    if found := NCCL.search(text):
        return _communication(text, _cut(found[0]))
    if found := HOST_MEMORY.search(text):
        return Meaning("OutOfMemory", _cut(found[0]), "Host")
    if found := DEVICE_MEMORY.search(text):
        return Meaning("OutOfMemory", _cut(found[0]), "Device")
    if found := UNAVAILABLE.search(text):
        return Meaning("DeviceUnavailable", _cut(found[0]))
    if found := LOST.search(text):
        return Meaning("DeviceFailed", _cut(found[0]))
    return _of_device(text)


def last_words(lines: Iterable[str]) -> Meaning | None:
    """Return what the lines that a node's processes wrote tell of the end of one: the first cause, else the first symptom."""
    found = [told for line in lines if (told := meaning(line))]
    return min(found, key=lambda told: told.reason in SYMPTOMS, default=None)


def _of_device(text: str) -> Meaning | None:
    if found := LIBRARY.search(text):
        return _of_library(found["status"], _cut(found[0]))
    if found := CUDA.search(text):
        told = next(group for group in found.groups() if group)
        sentence = f"CUDA error: {_cut(told)}"
        if told.startswith("out of memory"):
            return Meaning("OutOfMemory", sentence, "Device")
        if told.startswith(NO_DEVICE):
            return Meaning("DeviceUnavailable", sentence)
        return Meaning("InternalError" if PROGRAM.match(told) else "DeviceFailed", sentence)
    return None


def _of_library(status: str, sentence: str) -> Meaning:
    if "ALLOC" in status:
        return Meaning("OutOfMemory", sentence, "Host" if "HOST" in status else "Device")
    if "ARCH_MISMATCH" in status or "PREREQUISITE" in status:
        return Meaning("DeviceUnavailable", sentence)
    return Meaning("InternalError" if PROGRAM_STATUS.search(status) else "DeviceFailed", sentence)


def _communication(text: str, sentence: str) -> Meaning:
    """Return what an error of NCCL means. It says "unhandled cuda error" of its own device, and what CUDA said after it."""
    device = _of_device(text)
    if device and device.reason != "InternalError":
        return device
    if found := SHARED_MEMORY.search(text):
        return Meaning("CommunicationFailed", f"{_cut(found[0])}; raise resources.sharedMemory")
    if NCCL_PEER.search(text):
        return Meaning("PeerUnavailable", sentence)
    if "unhandled cuda error" in text or "ncclUnhandledCudaError" in text:
        return Meaning("DeviceFailed", sentence)
    if "invalid usage" in text or "invalid argument" in text:
        return Meaning("InternalError", sentence)
    return Meaning("CommunicationFailed", sentence)


def _cut(sentence: str) -> str:
    return sentence.strip()[:SENTENCE_LIMIT]
