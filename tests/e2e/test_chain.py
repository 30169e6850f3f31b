"""One apply, one served model: what must be true of examples/support-bot once it is Ready."""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from dev.demo import chat, follow, seed
from dev.demo.__main__ import close
from dev.demo.chain import EVAL_RUN, NAME
from dev.demo.kube import Kube, Object, ours
from dev.demo.stack import ROOT, SYSTEM, Stack
from tests.e2e import canaries

Objects = dict[tuple[str, str], Object]
KINDS = [("FineTuneJob", NAME), ("EvalRun", EVAL_RUN), ("ModelDeployment", NAME)]


def row(chain: Objects, metric: str) -> Object:
    """The EvalRun's result for a metric."""
    return next(entry for entry in chain["EvalRun", EVAL_RUN]["status"]["results"] if entry["metric"] == metric)


def test_the_endpoint_answers_a_chat_completion(stack: Stack, chain: Objects) -> None:
    assert chat.ask_service(stack.kube, NAME).strip()


def test_the_tuned_model_is_clearly_better_than_the_base_and_the_quantized_one_close_to_it(chain: Objects) -> None:
    result = row(chain, "heldOut/perplexity")
    base, tuned, quantized = float(result["baselines"]["base"]), float(result["baselines"]["unquantized"]), float(result["tested"])
    assert tuned < 0.9 * base
    assert quantized < 1.05 * tuned


def test_every_criterion_of_the_gate_passed(chain: Objects) -> None:
    status = chain["EvalRun", EVAL_RUN]["status"]
    assert status["verdict"] == "Passed"
    assert [entry["outcome"] for entry in status["gate"]] == ["Passed"] * 3


def test_the_model_that_serves_is_the_one_that_was_judged(chain: Objects) -> None:
    artifacts = {entry["name"]: entry["digest"] for entry in chain["FineTuneJob", NAME]["status"]["artifacts"]}
    assert chain["EvalRun", EVAL_RUN]["status"]["evaluated"]["digest"] == artifacts["w8a8"]
    assert [entry["digest"] for entry in chain["ModelDeployment", NAME]["status"]["revisions"]] == [artifacts["w8a8"]]


@pytest.mark.parametrize("key", KINDS, ids="/".join)
def test_the_object_ends_as_kstatus_reads_current_without_annotations_or_finalizers(chain: Objects, key: tuple[str, str]) -> None:
    thing = chain[key]
    conditions = {entry["type"]: entry["status"] for entry in thing["status"]["conditions"]}
    assert (conditions["Ready"], conditions["Reconciling"], conditions["Stalled"]) == ("True", "False", "False")
    assert thing["status"]["observedGeneration"] == thing["metadata"]["generation"]
    assert "finalizers" not in thing["metadata"]
    assert set(thing["metadata"].get("annotations", {})) <= {"kubectl.kubernetes.io/last-applied-configuration"}


def test_training_ran_in_two_pods_on_two_nodes(kube: Kube, chain: Objects) -> None:
    pods = kube.get("pods", f"--selector=tunesmith.dev/stage=Train,tunesmith.dev/name={NAME}")["items"]
    assert len({pod["spec"]["nodeName"] for pod in pods}) == 2
    assert chain["FineTuneJob", NAME]["status"]["resolved"]["worldSize"] == 2


def test_progress_arrived_in_status_from_the_training_pods(chain: Objects) -> None:
    progress = chain["FineTuneJob", NAME]["status"]["progress"]
    assert progress["progressPercentage"] > 0
    assert "loss" in {entry["name"] for entry in progress["metrics"]}


def test_the_report_is_one_file_that_needs_no_other(kube: Kube, chain: Objects, tmp_path: Path) -> None:
    report = seed.download(kube, chain["EvalRun", EVAL_RUN]["status"]["reportURI"], tmp_path).read_text()
    assert "heldOut/perplexity" in report
    for outside in ('src="http', "src='http", 'href="http', "@import", "url(http"):
        assert outside not in report


def test_the_demo_ends_with_the_table_the_verdict_the_report_and_a_curl_that_answers(
    stack: Stack, chain: Objects, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    close(stack, chain["EvalRun", EVAL_RUN], "an answer", said.append)
    shown = capsys.readouterr().out
    assert said == [f"the endpoint answered {chat.QUESTION!r} with 'an answer'"]
    for column in ("base", "tuned", "quantized", "heldOut/perplexity", "verdict: Passed"):
        assert column in shown
    (report,) = re.findall("^report:  (.+)$", shown, re.MULTILINE)
    assert Path(report).read_text().lower().startswith("<!doctype html>")
    curl = shown.rstrip().splitlines()[-1].strip()
    if stack.ours:
        direct = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        answer = subprocess.run(curl, shell=True, env=direct, capture_output=True, text=True, check=True)
        assert json.loads(answer.stdout)["choices"][0]["message"]["content"]


def test_the_demo_on_the_cluster_that_kubeconfig_names_finds_it_done_and_ends_with_a_way_in(stack: Stack, chain: Objects) -> None:
    images = {f"TUNESMITH_IMAGE_{part.upper()}": reference for part, reference in asdict(stack.images).items()}
    environment = os.environ | images | {"KUBECONFIG": str(stack.kube.kubeconfig)}
    done = subprocess.run([sys.executable, "-m", "dev.demo"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    forward, curl = (line.strip() for line in done.stdout.rstrip().splitlines()[-2:])
    assert forward == f"{' '.join(stack.kube.command('port-forward', f'svc/{NAME}', '8080:80'))} &"
    assert "http://localhost:8080/v1/chat/completions" in curl


def test_what_a_client_asks_is_told_by_no_status_event_log_metric_or_report(kube: Kube, chain: Objects, tmp_path: Path) -> None:
    canary = "canary-83f1b7"
    assert chat.ask_service(kube, NAME, f"What is {canary}?").strip()
    report = seed.download(kube, chain["EvalRun", EVAL_RUN]["status"]["reportURI"], tmp_path).read_text()
    texts = canaries.told(kube) | {"report": report}
    served = "metrics of " + NAME
    assert [source for source in canaries.sources(texts, "vllm:request_success_total") if source.startswith(served)]
    assert canaries.sources(texts, canary) == []


def test_what_the_data_say_is_told_by_no_status_event_log_or_metric_of_any_stage_and_but_for_one_row_by_no_report(
    kube: Kube, chain: Objects, tmp_path: Path
) -> None:
    texts = canaries.told(kube)
    for stage in ("prepare", "train", "finalize", "quantize", "evaluate", "compare"):
        assert [source for source in texts if source.startswith(f"log of {NAME}") and f"-{stage}-" in source], stage
    trained, held_out, chosen = (sentences(kube, name) for name in ("train.jsonl", "heldout.jsonl", "tasks/support_choice.jsonl"))
    assert min(map(len, (trained, held_out, chosen))) > 50
    forms = {form for text in trained | held_out | chosen for form in (text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1])}
    assert [(source, text) for source, told in texts.items() for text in forms if text in told] == []
    shown = html.unescape(seed.download(kube, chain["EvalRun", EVAL_RUN]["status"]["reportURI"], tmp_path).read_text())
    assert not [text for text in held_out - trained if text in shown]
    # The sample of the data with its loss mask: one conversation, of a few turns.
    assert len([text for text in trained if text in shown]) < 5


def sentences(kube: Kube, name: str) -> set[str]:
    """The texts in a file of rows on the volume `datasets` that are too long to be anywhere by chance."""
    lines = kube.run("exec", seed.LOADER, "--", "cat", f"/mnt/pvc/datasets/{name}").splitlines()
    return {text for line in lines for text in texts_in(json.loads(line)) if len(text) > 30}


def texts_in(value: Any) -> Iterator[str]:
    """All strings in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts_in(item)


def test_the_operator_never_failed(kube: Kube, chain: Objects) -> None:
    (pod,) = kube.get("pods", f"--namespace={SYSTEM}")["items"]
    (status,) = pod["status"]["containerStatuses"]
    if status["restartCount"]:
        # On a machine that stands still for some seconds it loses its Lease, ends, and begins anew; nothing else may end it.
        assert (status["restartCount"], status["lastState"]["terminated"]["exitCode"]) == (1, 0), status
        assert "the lease is lost" in kube.run("logs", pod["metadata"]["name"], f"--namespace={SYSTEM}", "--previous")


def test_a_model_whose_files_changed_after_training_is_not_served(kube: Kube, chain: Objects) -> None:
    artifact = next(entry for entry in chain["FineTuneJob", NAME]["status"]["artifacts"] if entry["name"] == "w8a8")
    config = "/mnt/pvc/" + artifact["uri"].removeprefix("pvc://") + "/config.json"
    spec = {"model": {"fineTuneJobRef": {"name": NAME}, "artifact": "w8a8"}, "resources": {"cpu": "100m", "memory": "2Gi"}}
    # Elsewhere: a file more in the folder would be reason enough to refuse it.
    kept = "/mnt/pvc/models/kept.json"
    kube.run("exec", seed.LOADER, "--", "cp", config, kept)
    try:
        kube.run("exec", seed.LOADER, "--", "sh", "-c", 'echo >> "$0"', config)
        kube.apply(ours("ModelDeployment", "tampered", spec))
        kube.run("wait", "modeldeployment/tampered", "--for=condition=Stalled", "--timeout=180s")
        thing = kube.get("modeldeployment", "tampered")
        assert follow.condition(thing, "Stalled")["reason"] == "DigestMismatch"
        assert "config.json" in follow.condition(thing, "Stalled")["message"]
        assert not follow.is_true(thing, "Ready")
    finally:
        kube.run("delete", "modeldeployment", "tampered", "--ignore-not-found")
        kube.run("exec", seed.LOADER, "--", "mv", kept, config)
