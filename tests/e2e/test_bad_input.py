"""Bad input ends Stalled with a message a person can act on, before any training pod exists.

Each reason is shown by a lower-level test (tests/trainer/test_prepare.py, tests/unit/operator/test_finetunejob_obstacles.py); here a pod
on a node tells it. One for each way there is in `make test`, all of them in `make drills`.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from dev.demo import follow, seed
from dev.demo.kube import Kube, Object, ours

MODEL = "pvc://datasets/smollm2-135m-instruct"
TRAIN = "pvc://datasets/train.jsonl"
GOOD: Object = {
    "model": {"uri": MODEL},
    "datasets": [{"name": "chat", "uri": TRAIN, "format": "Messages"}],
    "method": {"sft": {}},
    "adapter": {"lora": {"r": 8}},
    "training": {"maxSteps": 1, "maxLength": 256},
    "resources": {"cpu": "200m", "memory": "3Gi"},
    "output": {"uri": "pvc://models/bad-input"},
}
QUANTIZED = [{"name": "w4a16", "quantization": {"scheme": "W4A16", "algorithm": "GPTQ"}}]

# name -> (what differs from GOOD, reason, words the message must hold)
CASES: dict[str, tuple[Object, str, list[str]]] = {
    "uri-missing": ({"model": {"uri": "pvc://datasets/no-such-model"}}, "SourceNotFound", ["pvc://datasets/no-such-model"]),
    "data-missing": ({"datasets": [{"name": "chat", "uri": "pvc://datasets/none.jsonl", "format": "Messages"}]}, "SourceNotFound", ["none.jsonl"]),
    "row-shape": ({"datasets": [{"name": "chat", "uri": "pvc://datasets/bad/row.jsonl", "format": "Messages"}]}, "InvalidDataset", ["chat", "row 2"]),
    "all-dropped": ({"preparation": {"dropPatterns": ["."]}}, "EmptyDataset", ["chat", "dropPattern"]),
    "override-unknown": (
        {"training": {"maxLength": 256, "overrides": {"lerning_rate": "1"}}},
        "InvalidOverrides",
        ["lerning_rate", "training.learningRate"],
    ),
    "override-ours": ({"training": {"maxLength": 256, "overrides": {"output_dir": '"/tmp"'}}}, "InvalidOverrides", ["output_dir"]),
    "group-size": ({"variants": QUANTIZED}, "GroupSizeMismatch", ["128", "576"]),
    "too-long": ({"training": {"maxLength": 1048576}}, "SequenceTooLong", ["1048576"]),
    "pickle": ({"model": {"uri": "pvc://datasets/bad/pickle"}}, "UnsafeWeights", ["pytorch_model.bin"]),
    "remote-code": ({"model": {"uri": "pvc://datasets/bad/remote-code"}}, "RemoteCodeRefused", ["auto_map"]),
    "not-shared": ({"parallelism": {"nodes": 2, "ddp": {}}, "output": {"uri": "pvc://single/x"}}, "VolumeNotShared", ["single", "ReadWriteMany"]),
}

IN_EVERY_RUN = {"uri-missing", "row-shape", "not-shared"}
NAMES = [name if name in IN_EVERY_RUN else pytest.param(name, marks=pytest.mark.long) for name in CASES]

MAKE_BAD_FILES = """
set -eu
mkdir -p /mnt/pvc/datasets/bad/pickle /mnt/pvc/datasets/bad/remote-code
cd /mnt/pvc/datasets/bad
printf '%s\\n' '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}' '{"messages": "no list"}' > row.jsonl
for part in config.json tokenizer.json tokenizer_config.json; do
  cp ../smollm2-135m-instruct/$part pickle/
  cp ../smollm2-135m-instruct/$part remote-code/
done
echo x > pickle/pytorch_model.bin
cp ../smollm2-135m-instruct/*.safetensors remote-code/
sed -i 's/^{/{"auto_map": {"AutoModelForCausalLM": "evil.Model"},/' remote-code/config.json
"""


@pytest.fixture(scope="module")
def stalled(request: pytest.FixtureRequest, kube: Kube, chain: Any) -> dict[str, Object]:
    """The bad jobs whose tests are to run, applied at once (after the chain, so that they do not slow it), each waited for."""
    kube.run("exec", seed.LOADER, "--", "sh", "-c", MAKE_BAD_FILES)
    kube.apply(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "single"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
        }
    )
    names = [item.callspec.params["name"] for item in request.session.items if isinstance(item, pytest.Function) and item.module is request.module]
    for name in names:
        job = ours("FineTuneJob", f"bad-{name}", GOOD | CASES[name][0])
        kube.run("apply", "--filename=-", stdin=json.dumps(job))
    jobs = {}
    for name in names:
        kube.run("wait", f"finetunejob/bad-{name}", "--for=condition=Stalled", "--timeout=300s")
        jobs[name] = kube.get("finetunejob", f"bad-{name}")
    return jobs


@pytest.mark.parametrize("name", NAMES)
def test_bad_input_ends_stalled_with_a_message_to_act_on_and_no_training_pod(kube: Kube, stalled: dict[str, Object], name: str) -> None:
    _, reason, words = CASES[name]
    entry = follow.condition(stalled[name], "Stalled")
    assert entry["reason"] == reason
    for word in words:
        assert word in entry["message"]
    assert not kube.get("jobs", f"--selector=tunesmith.dev/stage=Train,tunesmith.dev/name=bad-{name}")["items"]
