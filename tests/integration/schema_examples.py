"""Valid specs for the schema's tests: one with every optional field and one with none, and another valid value for each immutable field."""

from __future__ import annotations

import copy
from typing import Any

Spec = dict[str, Any]

MESSAGES = {"uri": "pvc://datasets/chat.jsonl", "format": "Messages"}
RESOURCES = {"gpus": 1, "gpuResource": "nvidia.com/gpu", "cpu": "500m", "memory": "2Gi", "sharedMemory": "1Gi"}
SCHEDULING = {
    "priorityClassName": "low",
    "nodeSelector": {"gpu.example.com/model": "a100"},
    "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60}],
}

MINIMAL: dict[str, Spec] = {
    "FineTuneJob": {
        "model": {"uri": "pvc://models/base"},
        "datasets": [{"name": "chat", **MESSAGES}],
        "method": {"sft": {}},
        "output": {"uri": "pvc://models"},
    },
    "EvalRun": {
        "model": {"fineTuneJobRef": {"name": "support-bot"}, "artifact": "Merged"},
        "suites": [{"name": "heldOut", "perplexity": {"dataset": MESSAGES}}],
    },
    "ModelDeployment": {"model": {"uri": "pvc://models/base"}},
}

FULL: dict[str, Spec] = {
    "FineTuneJob": {
        **MINIMAL["FineTuneJob"],
        "method": {"sft": {"packing": True, "assistantOnlyLoss": True}},
        "validation": {"fraction": "0.05"},
        "preparation": {"minTokens": 8, "dropPatterns": ["(?i)password"]},
        "adapter": {"lora": {"r": 16, "loraAlpha": 32, "loraDropout": "0.05", "targetModules": ["all-linear"]}},
        "baseQuantization": "NF4",
        "training": {"numTrainEpochs": 3, "learningRate": "2e-4", "maxLength": 512, "precision": "BF16", "overrides": {"adam_beta2": "0.95"}},
        "parallelism": {"nodes": 2, "minNodes": 2, "processesPerNode": 1, "ddp": {}},
        "resources": RESOURCES | {"gpuMemory": "80Gi"},
        "stageResources": [{"stage": "Finalize", "cpu": "1", "memory": "8Gi"}],
        "scheduling": SCHEDULING,
        "checkpoints": {"everySteps": 50, "keep": 2, "gracePeriodSeconds": 60},
        "retries": 1,
        "output": {"uri": "pvc://models/team-a", "artifacts": ["Adapter", "Merged"]},
        "variants": [
            {"name": "w8a8", "quantization": {"scheme": "W8A8", "algorithm": "SmoothQuantGPTQ", "numCalibrationSamples": 64}},
            {"name": "w4a16", "quantization": {"scheme": "W4A16", "algorithm": "GPTQ", "groupSize": 32}},
        ],
        "suspend": False,
    },
    "EvalRun": {
        "model": {"fineTuneJobRef": {"name": "support-bot"}, "artifact": "w8a8"},
        "baselines": [{"name": "base"}, {"name": "unquantized"}, {"name": "rival", "model": {"modelDeploymentRef": {"name": "rival"}}}],
        "suites": [
            {
                "name": "knowledge",
                "harness": {
                    "tasks": ["mmlu"],
                    "numFewshot": 5,
                    "limit": 200,
                    "sampleSeed": 17,
                    "applyChatTemplate": True,
                    "includePath": "pvc://datasets/tasks",
                },
            },
            {"name": "heldOut", "perplexity": {"dataset": MESSAGES, "maxLength": 512}},
        ],
        "gate": [
            {"metric": "knowledge/mmlu/acc", "min": "0.45"},
            {"metric": "heldOut/perplexity", "max": "20"},
            {"metric": "heldOut/perplexity", "baseline": "base", "maxRatio": "0.95"},
            {"metric": "knowledge/mmlu/acc", "baseline": "unquantized", "maxDrop": "0.02"},
            {"metric": "knowledge/mmlu/acc,strict", "baseline": "base", "minRatio": "0.95", "higherIsBetter": True, "minSamples": 200},
            {"metric": "heldOut/bits_per_byte", "baseline": "base", "maxDrop": "0.1", "confidence": "0.9"},
            {"metric": "heldOut/overlap", "max": "0.01"},
        ],
        "precision": "FP32",
        "output": {"uri": "pvc://models/evaluations"},
        "resources": RESOURCES,
        "scheduling": SCHEDULING,
        "retries": 1,
        "suspend": False,
    },
    "ModelDeployment": {
        "model": {"fineTuneJobRef": {"name": "support-bot"}, "artifact": "w8a8"},
        "gate": {"evalRunRefs": [{"name": "support-bot-eval"}]},
        "engine": {"vllm": {"maxModelLen": 4096, "tensorParallelSize": 1, "overrides": {"enable_prefix_caching": "true"}}},
        "replicas": 2,
        "resources": RESOURCES,
        "scheduling": SCHEDULING,
    },
}

CHANGED: dict[str, Spec] = {
    "FineTuneJob": {
        "model": {"uri": "pvc://models/other"},
        "datasets": [{"name": "chat", "uri": "pvc://datasets/other.jsonl", "format": "Messages"}],
        "validation": {"fraction": "0.1"},
        "preparation": {"minTokens": 9},
        "method": {"sft": {"packing": False}},
        "adapter": {"lora": {"r": 8}},
        "training": {"learningRate": "1e-4"},
        "parallelism": {"nodes": 1, "ddp": {}},
        "output": {"uri": "pvc://models/team-b", "artifacts": ["Merged"]},
        "variants": [{"name": "w8a8", "quantization": {"scheme": "W8A8", "algorithm": "GPTQ"}}],
    },
    "EvalRun": {
        "model": {"fineTuneJobRef": {"name": "support-bot"}, "artifact": "Merged"},
        "baselines": [{"name": "base"}, {"name": "unquantized"}],
        "suites": [{"name": "knowledge", "harness": {"tasks": ["arc_easy"]}}],
        "gate": [{"metric": "knowledge/mmlu/acc", "min": "0.5"}],
        "precision": "BF16",
        "output": {"uri": "pvc://models/elsewhere"},
    },
}
"""Another valid value for every field in each kind's IMMUTABLE that has one: baseQuantization knows NF4 alone."""


def changed(kind: str, path: str, value: Any) -> Spec:
    """The full spec of `kind` with `value` at `path` (`a.b.0.c`); None removes what is there."""
    spec = copy.deepcopy(FULL[kind])
    *parents, last = (int(part) if part.isdigit() else part for part in path.split("."))
    place: Any = spec
    for part in parents:
        place = place[part]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return spec
