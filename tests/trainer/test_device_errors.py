"""Whose fault an error of CUDA, its libraries or NCCL is, told by the texts that they really write."""

import ctypes
from importlib.metadata import distribution

import pytest
import torch

from tests.trainer.test_failure import caught, fail_with
from tunesmith_trainer.device_errors import last_words, meaning

ASYNC = "\nCUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be incorrect."
NCCL = "NCCL error in: /pytorch/torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:77, {}, NCCL version 2.29.7\n{}\nLast error:\n{}"
WATCHDOG = "[rank1]:[E1122 10:11:12 ProcessGroupNCCL.cpp:2057] [PG ID 0 Rank 1] Process group watchdog thread terminated with exception: "
TIMEOUT = (
    "[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, OpType=ALLREDUCE) ran for 1800029 milliseconds before timing out."
)
# What text of CUDA's means what; every other one is the program's (test below).
UNAVAILABLE = {3, 34, 35, 36, 46, 98, 100, 101, 102, 103, 127, 209, 216, 221, 222, 304, *range(802, 811)}
FAILED = {4, 53, 205, 206, 214, 220, 226, 600, 700, 702, 709, 711, 714, 715, 716, 717, 718, 719, 909, 911, 999}


def cuda_texts():
    """Every error of the lock's own CUDA runtime: number and text."""
    files = [path.locate() for path in distribution("nvidia-cuda-runtime").files if path.name.startswith("libcudart.so")]
    library = ctypes.CDLL(str(files[0]))
    library.cudaGetErrorString.restype = ctypes.c_char_p
    texts = {number: library.cudaGetErrorString(number).decode() for number in range(1, 1000)}
    return {number: text for number, text in texts.items() if text != "unrecognized error code"}


def test_every_error_that_the_locks_cuda_knows_has_the_class_that_it_should():
    texts = cuda_texts()
    assert len(texts) > 100
    found = {number: meaning(f"CUDA error: {text}{ASYNC}") for number, text in texts.items()}
    for number, told in found.items():
        expected = "OutOfMemory" if number == 2 else "DeviceUnavailable" if number in UNAVAILABLE else "DeviceFailed" if number in FAILED else None
        assert told.reason == (expected or "InternalError"), (number, texts[number])
        assert told.sentence == f"CUDA error: {texts[number]}"
    assert (found[2].memory, found[700].memory) == ("Device", None)


def test_an_error_that_no_version_of_cuda_had_so_far_is_the_devices_until_a_second_node_has_it():
    assert meaning("CUDA error: the flux capacitor is empty").reason == "DeviceFailed"


@pytest.mark.parametrize(
    ("text", "reason", "memory"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB", "OutOfMemory", "Device"),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "OutOfMemory", "Device"),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", "OutOfMemory", "Device"),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED", "OutOfMemory", "Host"),
        ("unable to mmap 99 bytes from file </a/model.safetensors>: Cannot allocate memory (12)", "OutOfMemory", "Host"),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx( handle, opa, opb)`", "DeviceFailed", None),
        ("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`", "DeviceFailed", None),
        ("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED", "DeviceFailed", None),
        ("cuDNN error: CUDNN_STATUS_MAPPING_ERROR", "DeviceFailed", None),
        ("CUDA error: CUBLAS_STATUS_ARCH_MISMATCH when calling `cublasLtMatmul`", "DeviceUnavailable", None),
        ("CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `cublasSgemm`", "InternalError", None),
        ("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED", "InternalError", None),
        ("Triton Error [CUDA]: an illegal memory access was encountered", "DeviceFailed", None),
        ("Triton Error [CUDA]: device kernel image is invalid", "InternalError", None),
        ("CUDA driver error: unknown error", "DeviceFailed", None),
        ("Unable to determine the device handle for GPU0000:3B:00.0: GPU is lost. Reboot the system to recover this GPU", "DeviceFailed", None),
        ("No CUDA GPUs are available", "DeviceUnavailable", None),
        ("The NVIDIA driver on your system is too old (found version 12040). Please update your GPU driver", "DeviceUnavailable", None),
        ("Unexpected error from cudaGetDeviceCount(). Error 802: x. CUDA error: system not yet initialized", "DeviceUnavailable", None),
    ],
)
def test_a_text_of_torch_has_its_class_and_its_memory(text, reason, memory):
    found = meaning(text + ASYNC)
    assert (found.reason, found.memory) == (reason, memory)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            NCCL.format("unhandled cuda error", "ncclUnhandledCudaError: Call to CUDA function failed.", "Cuda failure 2 'out of memory'"),
            "OutOfMemory",
        ),
        (NCCL.format("unhandled cuda error", "ncclUnhandledCudaError: …", "Cuda failure 'uncorrectable ECC error encountered'"), "DeviceFailed"),
        (NCCL.format("unhandled cuda error", "ncclUnhandledCudaError: Call to CUDA function failed.", ""), "DeviceFailed"),
        (
            NCCL.format("remote process exited or there was a network error", "ncclRemoteError: …", "socketProgress: Connection closed"),
            "PeerUnavailable",
        ),
        (
            NCCL.format("unhandled system error", "ncclSystemError: …", "Call to recv from 10.0.0.7<50312> failed : Connection reset by peer"),
            "PeerUnavailable",
        ),
        (
            NCCL.format("unhandled system error", "ncclSystemError: …", "Call to ibv_reg_mr failed with error Cannot allocate memory"),
            "CommunicationFailed",
        ),
        (NCCL.format("unhandled system error", "ncclSystemError: …", "socketStartConnect: No route to host"), "CommunicationFailed"),
        (NCCL.format("internal error - please report this issue to the NCCL developers", "ncclInternalError: …", ""), "CommunicationFailed"),
        (NCCL.format("invalid usage", "ncclInvalidUsage: …", "Duplicate GPU detected : rank 0 and rank 1"), "InternalError"),
        ("NCCL communicator was aborted on rank 3. ", "CommunicationFailed"),
        (
            "NCCL communicator was aborted on rank 3.  Original reason for failure was: " + NCCL.format("remote process exited", "", ""),
            "PeerUnavailable",
        ),
        (TIMEOUT, "CommunicationFailed"),
    ],
)
def test_an_error_of_nccl_names_a_peer_a_device_or_only_the_network(text, reason):
    found = caught(fail_with, torch.distributed.DistBackendError(text))
    assert found.reason == reason
    # The place is the same whatever is wrong with the network.
    assert ("fingerprint" in found.details) == (reason != "CommunicationFailed")


def test_ncclls_shared_memory_is_too_small_and_not_the_volume():
    last = "Error while creating shared memory segment /dev/shm/nccl-x7 (size 9637888), error: No space left on device (28)"
    found = caught(fail_with, torch.distributed.DistBackendError(NCCL.format("unhandled system error", "ncclSystemError: …", last)))
    assert found.reason == "CommunicationFailed"
    assert "raise resources.sharedMemory" in found.message


def test_a_failed_device_has_a_fingerprint_and_names_the_node(monkeypatch):
    monkeypatch.setenv("TUNESMITH_NODE", "gpu-7")
    found = caught(fail_with, torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered" + ASYNC))
    assert (found.reason, found.exit_code, len(found.details["fingerprint"])) == ("DeviceFailed", 69, 12)
    assert found.message.startswith("a GPU of node gpu-7 failed: CUDA error: uncorrectable ECC error encountered;")


def test_an_assert_on_the_device_is_a_bug_of_the_program_and_its_sentence_is_told():
    found = caught(fail_with, torch.AcceleratorError("CUDA error: device-side assert triggered" + ASYNC))
    assert (found.reason, "fingerprint" in found.details) == ("InternalError", True)
    assert "AcceleratorError (CUDA error: device-side assert triggered) at" in found.message


@pytest.mark.parametrize(
    "error",
    [
        ValueError("row 7: 'my GPU says CUDA error: out of memory, canary-51'"),
        KeyError("canary-51: CUDA out of memory"),
        TypeError("canary-51 NCCL communicator was aborted, No space left on device"),
    ],
)
def test_an_error_that_quotes_a_row_is_not_taken_for_a_devices(error):
    found = caught(fail_with, error)
    assert found.reason == "InternalError"
    assert "canary" not in found.message


def test_what_an_error_was_raised_from_counts():
    def wrapped():
        try:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        except RuntimeError as error:
            raise ValueError("the model could not be loaded") from error

    found = caught(wrapped)
    assert (found.reason, found.details["memory"]) == ("OutOfMemory", "Device")


@pytest.mark.parametrize(
    ("stage", "error", "memory", "advice"),
    [
        ("Train", torch.OutOfMemoryError("CUDA out of memory."), "Device", "perDeviceTrainBatchSize"),
        ("Train", MemoryError(), "Host", "raise resources.memory"),
        ("Train", OSError(12, "Cannot allocate memory"), "Host", "raise resources.memory"),
        ("Evaluate", torch.OutOfMemoryError("CUDA out of memory."), "Device", "raise resources.gpus"),
        ("Quantize", torch.OutOfMemoryError("CUDA out of memory."), "Device", "maxLength"),
        ("Finalize", MemoryError(), "Host", "stageResources"),
    ],
)
def test_out_of_memory_tells_which_memory_and_what_helps_the_stage(stage, error, memory, advice):
    from tunesmith_trainer.failure import classify

    found = classify(error, stage)
    assert (found.reason, found.details["memory"]) == ("OutOfMemory", memory)
    assert advice in found.message
    assert ("perDeviceTrainBatchSize" in found.message) == (stage == "Train")


def test_the_last_words_of_a_process_that_was_aborted_tell_the_cause_before_the_symptom():
    told = last_words([TIMEOUT, WATCHDOG + TIMEOUT, "Fatal Python error: Aborted"])
    assert told.reason == "CommunicationFailed"
    # CUDA's errors reach NCCL's watchdog first.
    told = last_words([TIMEOUT, WATCHDOG + "CUDA error: uncorrectable ECC error encountered", "terminate called"])
    assert (told.reason, told.sentence) == ("DeviceFailed", "CUDA error: uncorrectable ECC error encountered")
    assert last_words(["[W1122 ProcessGroupNCCL.cpp:1496] Warning: destroy_process_group() was not called", "Aborted"]) is None
