"""What Triton compiles at a pod's first launch of a kernel is compiled here too, by its own code."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from dev.cluster import packages
from tests.trainer.bench import ROOT


@pytest.fixture(scope="module")
def compiler():
    packages.ensure(print, ["gcc", "libc6-dev"])
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        packages.ensure(print, ["libpython3-dev"])


@pytest.mark.usefixtures("compiler")
def test_tritons_own_build_step_compiles_loads_and_calls_an_extension_and_its_driver(tmp_path):
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, ROOT / "dev/gpu/compiles.py"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.rglob("probe*.so"))
