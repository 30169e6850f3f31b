"""Objects that somebody means ill with. Each says what has to become of it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.integration.operators import EVAL_RUN, FINE_TUNE_JOB
from tunesmith.core.objects import Object

SECRET = "victim"
"""Of the same namespace."""
SPECS: dict[str, Object] = {
    "FineTuneJob": FINE_TUNE_JOB,
    "EvalRun": EVAL_RUN | {"model": {"uri": "pvc://models/base"}, "output": {"uri": "pvc://models/out"}},
    "ModelDeployment": {"model": {"uri": "pvc://models/base"}},
}


@dataclass(frozen=True)
class Hostile:
    """One object. `spec` is merged into a valid spec of `kind`, `metadata` into valid metadata."""

    what: str
    kind: str
    spec: Object
    field: str = ""
    """Where the API server has to report it; empty: it is let in, and has to be harmless."""
    metadata: Object | None = None
    stalled: str = ""
    """The reason that it has to end in, if it is let in and cannot work."""
    unknown: bool = False
    """Whether `field` is one that there is not: only who asks for strict validation is told, for others it is taken away, and has to do no harm."""

    def manifest(self, name: str) -> Object:
        """The object under that name."""
        return {
            "apiVersion": "tunesmith.dev/v1alpha1",
            "kind": self.kind,
            "metadata": {"name": name} | (self.metadata or {}),
            "spec": _merged(SPECS[self.kind], self.spec),
        }


def _merged(spec: Object, change: Object) -> Object:
    return copy.deepcopy(spec) | copy.deepcopy(change)


def _dataset(**change: Any) -> Object:
    return {"datasets": [{"name": "chat", "uri": "pvc://models/chat.jsonl", "format": "Messages"} | change]}


def _overrides(**change: str) -> Object:
    return {"training": {"overrides": change}}


def _paths() -> Iterator[Hostile]:
    """Paths and addresses that lead elsewhere."""
    escapes = {
        "a path that climbs": "pvc://models/../../etc/passwd",
        "a claim that climbs": "pvc://../etc",
        "a path that ends in dots": "pvc://models/..",
        "an empty segment": "pvc://models//etc",
        "a percent-coded climb": "pvc://models/%2e%2e/etc",
        "a file of the node": "file:///etc/passwd",
        "a bare path": "/etc/passwd",
        "the cloud's metadata service": "http://169.254.169.254/latest/meta-data",
        "a line break": "pvc://models/x\nrunURI: pvc://victim",
        "a NUL": "pvc://models/x\x00y",
        "a home folder": "pvc://models/~root",
        "a shell's variable": "pvc://models/$(HOME)",
        "a template": "pvc://models/{{.Values.secret}}",
        "a namespace before the claim": "pvc://victim:models/x",
        "a claim of capitals": "pvc://Models/x",
        "a claim like an option": "pvc://-models/x",
        "512 characters and more": "pvc://models/" + "x" * 512,
    }
    for what, uri in escapes.items():
        yield Hostile(f"{what} in model.uri", "FineTuneJob", {"model": {"uri": uri}}, "spec.model.uri")
    climb = "pvc://models/../x"
    yield Hostile("a path that climbs in a dataset", "FineTuneJob", _dataset(uri=climb), "spec.datasets[0].uri")
    yield Hostile("a path that climbs in the output", "FineTuneJob", {"output": {"uri": climb}}, "spec.output.uri")
    suite = {"name": "a", "harness": {"tasks": ["t"], "includePath": climb}}
    yield Hostile("a path that climbs to task files", "EvalRun", {"suites": [suite]}, "spec.suites[0].harness.includePath")
    yield Hostile("a path that climbs in what is served", "ModelDeployment", {"model": {"uri": climb}}, "spec.model.uri")


def _names() -> Iterator[Hostile]:
    """Names that reach into paths, other namespaces or other objects."""
    yield Hostile("a name with a dot", "FineTuneJob", {}, "metadata.name", {"name": "a.b"})
    yield Hostile("a name too long for its children", "FineTuneJob", {}, "metadata.name", {"name": "a" * 41})
    yield Hostile("a name no Service can have", "ModelDeployment", {}, "metadata.name", {"name": "1a"})
    yield Hostile("a dataset's name as a path", "FineTuneJob", _dataset(name="../x"), "spec.datasets[0].name")
    yield Hostile("a dataset's name in look-alike letters", "FineTuneJob", _dataset(name="\u0441hat"), "spec.datasets[0].name")
    quantization = {"scheme": "W8A8", "algorithm": "GPTQ"}
    for what, name in {"the name of another artefact": "Merged", "a path": "a/b", "an option": "-rf"}.items():
        variant = {"name": name, "quantization": quantization}
        yield Hostile(f"a variant with {what}", "FineTuneJob", {"variants": [variant]}, "spec.variants[0].name")
    twins = [{"name": "twin", "quantization": quantization}] * 2
    yield Hostile("two variants of one name", "FineTuneJob", {"variants": twins}, "spec.variants")
    yield Hostile(
        "a baseline that takes the tested model's name", "EvalRun", {"baselines": [{"name": "tested", "model": {"uri": "pvc://models/x"}}]}, "name"
    )
    yield Hostile("a suite's name as a path", "EvalRun", {"suites": [{"name": "../a", "harness": {"tasks": ["t"]}}]}, "spec.suites[0].name")
    yield Hostile(
        "a task's name as a path", "EvalRun", {"suites": [{"name": "a", "harness": {"tasks": ["../../etc/x"]}}]}, "spec.suites[0].harness.tasks[0]"
    )
    elsewhere = {"fineTuneJobRef": {"name": "tune", "namespace": "victim"}, "artifact": "Merged"}
    yield Hostile("a reference with a namespace", "ModelDeployment", {"model": elsewhere}, "namespace", unknown=True)
    slashed = {"fineTuneJobRef": {"name": "victim/tune"}, "artifact": "Merged"}
    yield Hostile("a reference with a slash", "ModelDeployment", {"model": slashed}, "spec.model.fineTuneJobRef.name")
    yield Hostile(
        "an artefact's name as a path", "ModelDeployment", {"model": {"fineTuneJobRef": {"name": "tune"}, "artifact": "../x"}}, "spec.model.artifact"
    )


def _pods() -> Iterator[Hostile]:
    """What would give a pod more than ours have."""
    for field, value in {
        "env": [{"name": "LD_PRELOAD", "value": "/mnt/pvc/models/x.so"}],
        "volumes": [{"name": "root", "hostPath": {"path": "/"}}],
        "securityContext": {"privileged": True},
        "serviceAccountName": "tunesmith",
        "hostNetwork": True,
        "template": {"spec": {"hostPID": True}},
        "image": "registry.example/evil",
        "command": ["sh"],
    }.items():
        yield Hostile(f"a field {field} of a pod", "FineTuneJob", {field: value}, field, unknown=True)
    yield Hostile(
        "the priority of the cluster's own pods", "FineTuneJob", {"scheduling": {"priorityClassName": "system-node-critical"}}, "priorityClassName"
    )
    yield Hostile("the volume of another namespace", "FineTuneJob", {"model": {"uri": "pvc://victims/model"}})
    yield Hostile("a volume named in a pattern", "FineTuneJob", {"preparation": {"dropPatterns": ["pvc://unnamed/x"]}})
    yield Hostile("a volume named in a setting", "FineTuneJob", _overrides(uri="pvc://unnamed/x"))
    yield Hostile("a volume named in an engine's setting", "ModelDeployment", {"engine": {"vllm": {"overrides": {"uri": "pvc://unnamed/x"}}}})
    yield Hostile("a resource that is none", "FineTuneJob", {"resources": {"gpus": 1, "gpuResource": "requests.example/gpu"}})
    yield Hostile("a resource of the kubelet's own", "FineTuneJob", {"resources": {"gpus": 1, "gpuResource": "kubernetes.io/batch-cpu"}})
    yield Hostile("less memory than none", "FineTuneJob", {"resources": {"memory": "-1Gi"}}, "spec.resources.memory")
    yield Hostile("more memory than there is", "FineTuneJob", {"resources": {"memory": "9999999999999999999999Pi"}})


def _secrets() -> Iterator[Hostile]:
    """Secrets by trick: no field of ours takes one, and the operator may read none."""
    named = {"name": SECRET}
    key = {"secretKeyRef": {"name": SECRET, "key": "token"}}
    volume = {"name": "secret", "secret": {"secretName": SECRET}}
    projected = {"name": "secret", "projected": {"sources": [{"secret": named}]}}
    suite = {"name": "heldOut", "perplexity": {"dataset": {"uri": "pvc://models/x", "format": "Text", "secretRef": named}}}
    for what, kind, spec, field in (
        ("a Secret for the model", "FineTuneJob", {"model": {"uri": "pvc://models/base", "secretRef": named}}, "secretRef"),
        ("a Secret for a dataset", "FineTuneJob", _dataset(secretRef=named), "secretRef"),
        ("a Secret for the output", "FineTuneJob", {"output": {"uri": "pvc://models/out", "secretRef": named}}, "secretRef"),
        ("a Secret for a suite", "EvalRun", {"suites": [suite]}, "secretRef"),
        ("a Secret for the engine's keys", "ModelDeployment", {"access": {"apiKeySecretRef": named}}, "access"),
        ("a Secret for pulling images", "ModelDeployment", {"imagePullSecrets": [named]}, "imagePullSecrets"),
        ("a whole Secret as variables", "FineTuneJob", {"envFrom": [{"secretRef": named}]}, "envFrom"),
        ("a whole Secret as an engine's variables", "ModelDeployment", {"engine": {"vllm": {"envFrom": [{"secretRef": named}]}}}, "envFrom"),
        ("a Secret's key as a variable", "EvalRun", {"env": [{"name": "TOKEN", "valueFrom": key}]}, "env"),
        ("a Secret as a volume", "FineTuneJob", {"volumes": [volume]}, "volumes"),
        ("a Secret in a projected volume", "EvalRun", {"volumes": [projected]}, "volumes"),
        ("a Secret beside the resources", "FineTuneJob", {"resources": {"cpu": "1", "volumes": [volume]}}, "volumes"),
    ):
        yield Hostile(what, kind, spec, field, unknown=True)
    for what, uri in {"address": f"secret://{SECRET}/token", "claim": "pvc://secret:victim/token"}.items():
        yield Hostile(f"a Secret as a model's {what}", "FineTuneJob", {"model": {"uri": uri}}, "spec.model.uri")
    yield Hostile("a token's folder as a path in a claim", "EvalRun", {"model": {"uri": "pvc://models/../../../var/run/secrets"}}, "spec.model.uri")
    yield Hostile("a Secret named in a setting", "FineTuneJob", _overrides(hub_token=f"$({SECRET})"))


def _strings() -> Iterator[Hostile]:
    """Strings that mean something to a shell, a template, a terminal or a parser."""
    for what, text in {
        "a shell's command": "$(cat /etc/passwd); `id`",
        "a template": "{{ .Values.secret }} {% include '/etc/passwd' %}",
        "control characters": "\x1b[2J\x07\r\n\t",
        "letters from right to left": "\u202e\u2066 txt.exe",
        "an end of JSON": '"}], "runURI": "pvc://unnamed/x", "a": [{"',
        "a thousand brackets, cut to what fits": "[" * 255,
        "a pattern that never ends": "(a+)+$",
        "half a pattern": "(",
    }.items():
        yield Hostile(f"{what} as a pattern", "FineTuneJob", {"preparation": {"dropPatterns": [text]}})
        yield Hostile(f"{what} as a setting's value", "FineTuneJob", _overrides(adam_beta2=text))
        yield Hostile(f"{what} as an engine's setting", "ModelDeployment", {"engine": {"vllm": {"overrides": {"seed": text}}}})
    for what, key in {"an option": "--middleware", "a dunder": "__class__", "a line break": "a\nb", "a path": "a/b"}.items():
        yield Hostile(f"{what} as a setting's key", "FineTuneJob", _overrides(**{key: "1"}), "spec.training.overrides")
    yield Hostile("a setting that is ours", "FineTuneJob", _overrides(output_dir='"/etc"'))
    yield Hostile("an engine's setting that loads code", "ModelDeployment", {"engine": {"vllm": {"overrides": {"worker_cls": '"os.system"'}}}})
    yield Hostile("control characters in a node's label", "FineTuneJob", {"scheduling": {"nodeSelector": {"\x07bell": "x"}}}, "spec.scheduling")
    yield Hostile("a template in a node's label", "FineTuneJob", {"scheduling": {"nodeSelector": {"a": "{{y}}"}}}, "spec.scheduling.nodeSelector")
    odd = {"nodeSelector": {"a..b/c": ""}}
    yield Hostile("a node's label that only a pod's schema refuses", "FineTuneJob", {"scheduling": odd}, stalled="Invalid")
    broken = [{"key": "a\nb", "operator": "Exists"}]
    yield Hostile("a line break in a toleration", "FineTuneJob", {"scheduling": {"tolerations": broken}}, "spec.scheduling.tolerations")


def _sizes() -> Iterator[Hostile]:
    """Values that are too large, too deep, or no numbers."""
    row = {"name": "chat", "uri": "pvc://models/chat.jsonl", "format": "Messages"}
    yield Hostile("17 datasets", "FineTuneJob", {"datasets": [row | {"name": f"d{n}"} for n in range(17)]}, "spec.datasets")
    yield Hostile("33 settings", "FineTuneJob", _overrides(**{f"key_{n}": "1" for n in range(33)}), "spec.training.overrides")
    yield Hostile("a long setting", "FineTuneJob", _overrides(adam_beta2="9" * 513), "spec.training.overrides")
    yield Hostile("33 patterns", "FineTuneJob", {"preparation": {"dropPatterns": ["x"] * 33}}, "spec.preparation.dropPatterns")
    yield Hostile("a thousand nodes", "FineTuneJob", {"parallelism": {"nodes": 1000, "ddp": {}}}, "spec.parallelism.nodes")
    yield Hostile("a number beyond 64 bits", "FineTuneJob", {"training": {"maxSteps": 2**63}}, "spec.training.maxSteps")
    yield Hostile("a number below none", "FineTuneJob", {"retries": -1}, "spec.retries")
    for text in ("nan", "inf", "-1", "0x10", "1_000", "1e9999"):
        yield Hostile(f"a rate of {text}", "FineTuneJob", {"training": {"learningRate": text}}, "spec.training.learningRate")
    yield Hostile("a word for a truth", "FineTuneJob", {"suspend": "true"}, "spec.suspend")
    yield Hostile("200 KiB of annotations", "FineTuneJob", {}, metadata={"annotations": {"example.com/x": "x" * 200 * 1024}})
    yield Hostile("labels like ours", "FineTuneJob", {}, metadata={"labels": {"tunesmith.dev/uid": "victim", "tunesmith.dev/stage": "Train"}})
    yield Hostile("a finalizer that nobody takes away", "FineTuneJob", {}, metadata={"finalizers": ["example.com/never"]})


HOSTILE = [*_paths(), *_names(), *_pods(), *_secrets(), *_strings(), *_sizes()]
