"""Triton's own build steps, as its NVIDIA driver takes them at a pod's first launch of a kernel. No GPU is needed for them.

    python compiles.py [--torch] [--device cuda] [--read-only]

`--torch` compiles a function by torch.compile too: C++ for the CPU, or a Triton kernel that is then launched on the GPU. `--read-only`
also asks that the root file system is read-only, as a pod's is. Exit code 0: everything was compiled, loaded and gave the right answer.
Runs in an image's own environment: it imports nothing of this repository.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
from pathlib import Path

SOURCE = """
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
static PyObject *answer(PyObject *self, PyObject *arguments) { return PyLong_FromLong((long)sqrt(1764.0)); }
static PyMethodDef methods[] = {{"answer", answer, METH_NOARGS, ""}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "probe", NULL, -1, methods};
PyMODINIT_FUNC PyInit_probe(void) { return PyModule_Create(&definition); }
"""


def compile_extension() -> None:
    """Compile, cache, load and call a C extension by the function that Triton's driver calls with its own source."""
    from triton.runtime.build import compile_module_from_src

    found = compile_module_from_src(SOURCE, "probe").answer()
    if found != 42:
        raise SystemExit(f"the compiled extension answers {found}, not 42")


def compile_driver() -> None:
    """Compile Triton's NVIDIA driver itself, against an empty library in place of the one that a GPU node's driver brings."""
    from triton.backends.nvidia import driver
    from triton.runtime import build

    # It asks this program where the driver's library lies.
    subprocess.run(["/sbin/ldconfig", "-p"], stdout=subprocess.DEVNULL, check=True)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["gcc", "-shared", "-x", "c", os.devnull, "-o", f"{folder}/libcuda.so.1"], check=True)
        source = str(Path(driver.dirname) / "driver.c")
        build._build("cuda_utils", source, folder, [driver.libdevice_dir, folder], driver.include_dirs, driver.libraries, [])


def compile_by_torch(device: str) -> None:
    """Compile a function by torch.compile and compare it with what it was made from."""
    import torch

    def function(values: torch.Tensor) -> torch.Tensor:
        return (values.sin() * 2 + values.cos()).relu().sum(-1)

    values = torch.linspace(-3, 3, 4096, device=device).reshape(64, 64)
    torch.testing.assert_close(torch.compile(function)(values), function(values))


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--torch", action="store_true")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--read-only", action="store_true")
    wanted = parser.parse_args()
    if wanted.read_only and not os.statvfs("/").f_flag & os.ST_RDONLY:
        raise SystemExit("the root file system is not read-only")
    compile_extension()
    compile_driver()
    if wanted.torch:
        compile_by_torch(wanted.device)
    print("compiled", flush=True)


if __name__ == "__main__":
    main()
