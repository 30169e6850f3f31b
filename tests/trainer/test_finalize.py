import json
import shutil

import pytest

from dev.cluster.ports import free_port
from tests.trainer.bench import VICUNA, finalize_input, prepare_input, train_input

pytestmark = pytest.mark.timeout(600)


def logits(model):
    import torch

    with torch.no_grad():
        return model(torch.arange(3, 40).unsqueeze(0)).logits


def test_adapter_and_merged_are_complete_artefacts_named_by_digest(story, finalized, monkeypatch):
    from tunesmith_trainer import store

    monkeypatch.setenv("TUNESMITH_PVC_ROOT", str(story.store.root))
    code, result = finalized
    assert code == 0, result
    assert [(item["name"], item["format"]) for item in result["artifacts"]] == [("Adapter", "PEFT"), ("Merged", "Safetensors")]
    for item in result["artifacts"]:
        folder = story.store.path(item["uri"])
        assert store.is_intact(folder)
        assert store.read_manifest(folder).digest == item["digest"]
        assert item["baseDigest"] == story.prepared["model"]["digest"]
        assert item["digest"] in (folder / "README.md").read_text()


def test_the_artefacts_speak_the_base_models_template(story, finalized):
    base = story.store.path(story.prepared["model"]["uri"])
    for item in finalized[1]["artifacts"]:
        for name in ("chat_template.jinja", "tokenizer.json", "tokenizer_config.json"):
            assert (story.store.path(item["uri"]) / name).read_bytes() == (base / name).read_bytes()


def test_generation_config_that_transformers_does_not_save_is_carried_as_it_is(story, finalized):
    for item in finalized[1]["artifacts"]:
        assert (story.store.path(item["uri"]) / "generation_config.json").read_text() == VICUNA


def test_merged_is_the_base_with_the_adapter_to_the_last_bit_of_bf16_and_answers_so_and_not_as_the_base(story, finalized):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapter, merged = (story.store.path(item["uri"]) for item in finalized[1]["artifacts"])
    base = story.store.path(story.prepared["model"]["uri"])

    def load(folder):
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    with_adapter = PeftModel.from_pretrained(load(base), str(adapter))
    before, tuned, after = (logits(model) for model in (load(base), with_adapter, load(merged)))
    wanted, weights = with_adapter.merge_and_unload().state_dict(), load(merged).state_dict()
    assert weights.keys() == wanted.keys()
    assert [name for name, value in weights.items() if not torch.equal(value, wanted[name].bfloat16().float())] == []
    # bf16 keeps 8 bits of each merged weight.
    assert (after - tuned).abs().max() < 0.05 * (tuned - before).abs().max()


def test_the_lineage_says_what_came_of_what(story, finalized):
    lineage = json.loads((story.folder / "run.json").read_text())["lineage"]
    assert lineage["checkpoint"]["step"] == 300
    assert [item["digest"] for item in lineage["artifacts"]] == [item["digest"] for item in finalized[1]["artifacts"]]


def test_a_finished_finalize_answers_at_once(story, finalized):
    merged = story.store.path(finalized[1]["artifacts"][1]["uri"]) / "model.safetensors"
    before = merged.stat().st_mtime_ns
    assert story.store.run(story.finalize) == finalized
    assert merged.stat().st_mtime_ns == before


def test_an_adapter_that_training_left_at_zero_is_refused(story, finalized, tmp_path):
    from safetensors.torch import load_file, save_file

    from tunesmith_trainer import store

    source = story.store.path(story.finalize["checkpoint"]["uri"])
    # Not among the run's own checkpoints: other tests look at those.
    idle = story.folder / "idle" / "step-301"
    idle.mkdir(parents=True)
    (idle / "adapter_config.json").write_bytes((source / "adapter_config.json").read_bytes())
    tensors = load_file(source / "adapter_model.safetensors")
    save_file({name: tensor * 0 if "lora_B" in name else tensor for name, tensor in tensors.items()}, idle / "adapter_model.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_PVC_ROOT", str(story.store.root))
        store.write_manifest(idle)
        value = story.finalize | {"checkpoint": {"uri": store.uri_of(idle), "step": 301}}
    # Put back afterwards: the run is told once for all tests, and its answer belongs to its story.
    told = story.folder / "results" / "finalize.json"
    kept = told.rename(tmp_path / "finalize.json")
    try:
        code, result = story.store.run(value)
    finally:
        shutil.copyfile(kept, told)
    assert (code, result["reason"]) == (65, "NoEffect")


def test_full_fine_tuning_makes_a_merged_model_that_differs_from_its_base(store, zygote):
    import torch
    from transformers import AutoModelForCausalLM

    prepared = store.run(prepare_input(adapter=None))[1]
    train = train_input(prepared, free_port(), adapter=None)
    code, trained = store.start(train, **zygote).wait()
    assert code == 0, trained
    value = finalize_input(train, trained)
    assert store.run(value)[1]["reason"] == "InvalidSettings"
    code, result = store.run(value | {"artifacts": ["Merged"]})
    assert code == 0, result
    (merged,) = result["artifacts"]
    before, after = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).state_dict()
        for folder in (store.root / "models" / "base", store.path(merged["uri"]))
    )
    assert all(not torch.equal(tensor, after[name]) for name, tensor in before.items() if tensor.dim() > 1)
