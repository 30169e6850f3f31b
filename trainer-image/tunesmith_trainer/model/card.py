"""What is told of a finished run: each artefact's model card, and the lineage in `run.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from tunesmith_contract.results import Artifact
from tunesmith_contract.stages import FinalizeInput
from tunesmith_trainer import store

CARD = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False).from_string(
    """\
---
library_name: {{ "peft" if artifact.format == "PEFT" else "transformers" }}
pipeline_tag: text-generation
tags: [tunesmith]
---
# {{ owner.name }}: {{ artifact.name }}

Fine-tuned by Tunesmith for `{{ owner.namespace }}/{{ owner.name }}`.

| | |
|---|---|
| Base model | `{{ base.uri }}`{{ ", " ~ base.architecture if base.architecture else "" }} |
| Base digest | `{{ artifact.base_digest }}` |
| Digest | `{{ artifact.digest }}` |
| Checkpoint | step {{ checkpoint.step }} |
{% for name, value in results %}
| {{ name }} | {{ value }} |
{% endfor %}

## Data
{% for item in datasets %}
- `{{ item.name }}`: {{ item.rows }} rows ({{ item.dropped }} dropped), `{{ item.digest }}`
{% else %}
Not recorded.
{% endfor %}

## Settings
{% for name, value in settings %}
- {{ name }}: {{ value }}
{% else %}
Not recorded.
{% endfor %}
"""
)


def write_card(folder: Path, run_folder: Path, stage: FinalizeInput, artifact: Artifact) -> None:
    """Write an artefact's README.md out of what the run recorded; it is no part of the artefact's digest."""
    recorded = store.read_json(run_folder / "run.json") or {}
    trained = store.read_json(run_folder / "results" / "train.json") or {}
    names = {"trainLoss": "Training loss", "evalLoss": "Validation loss", "epoch": "Epochs", "worldSize": "Processes"}
    text = CARD.render(
        artifact=artifact,
        owner=stage.object,
        base={"uri": stage.model.uri, "architecture": recorded.get("model", {}).get("architecture")},
        checkpoint=stage.checkpoint,
        results=[(label, trained[key]) for key, label in names.items() if key in trained],
        datasets=recorded.get("datasets", []),
        settings=sorted(_settings(recorded.get("run", {})).items()),
    )
    store.write_bytes(folder / "README.md", text.encode())


def _settings(run: dict[str, Any]) -> dict[str, Any]:
    lora = (run.get("adapter") or {}).get("lora") or {}
    sft = (run.get("method") or {}).get("sft") or {}
    return {key: value for key, value in (run.get("training", {}) | sft | lora).items() if value not in ({}, [])}


def write_lineage(run_folder: Path, stage: FinalizeInput, artifacts: list[Artifact]) -> None:
    """Add to the run's `run.json` which checkpoint and which artefacts came of it."""
    recorded = store.read_json(run_folder / "run.json") or {}
    recorded["lineage"] = {
        "base": stage.model.dump(),
        "checkpoint": stage.checkpoint.dump(),
        "artifacts": [artifact.dump() for artifact in artifacts],
    }
    store.write_json(run_folder / "run.json", recorded)
