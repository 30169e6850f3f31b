"""What the trainer's tests share: stage files for a tiny model, its data, and a store to run stages in."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from dev.cluster.ports import free_port
from dev.rows import WORDS, write_rows

ROOT = Path(__file__).resolve().parent.parent.parent
GOLDEN = ROOT / "tests" / "contract"
OBJECT = {"kind": "FineTuneJob", "namespace": "team-a", "name": "support-bot", "uid": "6f1c"}

# The template of SmolLM2, the model of the examples: it has no {% generation %} mark and adds a system prompt of its own.
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are tiny<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# As Vicuna's and Llama 2's generation_config.json were published: transformers loads it, and refuses to save it.
VICUNA = '{"temperature": 0.9, "top_p": 0.6, "eos_token_id": 2}'

PATIENCE = 240
"""Seconds that a stage, or what one of its processes does, may take."""
SECRET = "canary-secret-51c7"
# What a pod is given beside its own files.
LAUNCH = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    # Nobody waits here for what the other pod says.
    "TUNESMITH_ECHO_SECONDS": "0",
}


def make_tokenizer():
    """A byte-level tokenizer trained on a little text, with a ChatML template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=512, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["system user assistant You are tiny " + " ".join(WORDS)] * 10, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = CHATML
    return fast


def make_model(folder, **changes):
    """Write a random Llama of two layers (hidden 64, head_dim 32) with its tokenizer, as a user would bring it; `changes` are its config's."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(**{
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        "tie_word_embeddings": True,
    } | changes)  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def conversations(count):
    """Yield conversations with a rule to learn: the answer is the question's words backwards."""
    for number in range(count):
        words = [WORDS[(number * step + 3 * step) % len(WORDS)] for step in (1, 2, 3)]
        question, answer = f"{number} " + " ".join(words), " ".join(reversed(words))
        yield {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def present(value):
    """A value without its members that are None."""
    return {key: member for key, member in value.items() if member is not None}


def run_block(**changes):
    """A FineTuneJob's `run` for the tiny model, with top-level blocks replaced by `changes`, or left out for None."""
    block = {
        "images": {"trainer": "trainer:1"},
        "model": {"uri": "pvc://models/base"},
        "datasets": [{"name": "chat", "uri": "pvc://data/chat.jsonl", "format": "Messages"}],
        "validation": {"fraction": "0.1"},
        "preparation": {"minTokens": 4, "dropPatterns": []},
        "method": {"sft": {"packing": True, "assistantOnlyLoss": True}},
        "adapter": {"lora": {"r": 4, "loraAlpha": 8, "loraDropout": "0", "targetModules": ["all-linear"]}},
        "training": {
            "numTrainEpochs": 1, "maxSteps": 4, "learningRate": "1e-2", "perDeviceTrainBatchSize": 1, "gradientAccumulationSteps": 1,
            "lrSchedulerType": "linear", "warmupSteps": 0, "weightDecay": "0", "maxGradNorm": "1", "gradientCheckpointing": False,
            "maxLength": 64, "precision": "BF16", "seed": 17, "loggingSteps": 1, "overrides": {},
        },
        "parallelism": {"nodes": 1, "processesPerNode": 1, "ddp": {}},
        "output": {"uri": "pvc://models/out", "artifacts": ["Adapter", "Merged"]},
        "variants": [],
    }  # fmt: skip
    if "adapter" in changes and changes["adapter"] is None:
        # As the operator fills it in.
        block["output"] = block["output"] | {"artifacts": ["Merged"]}
    return present(block | changes)


def training(**changes):
    """The run's training block with some settings changed."""
    return run_block()["training"] | changes


def prepare_input(**changes):
    """Prepare's stage file for the tiny model."""
    return {
        "schemaVersion": 2, "stage": "Prepare", "attempt": 1, "device": "CPU", "object": OBJECT,
        "outputURI": "pvc://models/out", "run": run_block(**changes),
    }  # fmt: skip


def train_input(prepared, port, nodes=1, attempt=1, processes=1, checkpoints=None, **changes):
    """Train's stage file for a run that was prepared with the same blocks."""
    block = run_block(**changes)
    return present({
        "schemaVersion": 2, "stage": "Train", "attempt": attempt, "device": "CPU", "object": OBJECT,
        "runURI": prepared["runURI"], "model": {key: prepared["model"][key] for key in ("uri", "digest")},
        "method": block["method"], "adapter": block.get("adapter"), "training": block["training"],
        "checkpoints": {"everySteps": 40, "keep": 2, "gracePeriodSeconds": 60} | (checkpoints or {}),
        "parallelism": {"nodes": nodes, "processesPerNode": processes, "ddp": {}},
        "rendezvous": {"endpoint": f"127.0.0.1:{port}", "nodes": nodes, "processesPerNode": processes},
    })  # fmt: skip


def finalize_input(train, trained):
    """Finalize's stage file for a run that was trained."""
    keys = ("schemaVersion", "attempt", "device", "object", "runURI", "model", "adapter")
    common = present({key: train.get(key) for key in keys})
    return common | {"stage": "Finalize", "checkpoint": trained["checkpoint"], "artifacts": ["Adapter", "Merged"]}


@contextmanager
def training_alone(store):
    """Build trainers of a prepared run in this process, as the only process of a training: give each Train's stage file."""
    from accelerate.state import AcceleratorState, GradientState
    from torch import distributed

    from tunesmith_contract.stages import TrainInput
    from tunesmith_trainer.training import loop, strategy
    from tunesmith_trainer.training.watchdog import Vitals

    scratch = store.folder / "alone"

    def forget():
        AcceleratorState._reset_state(True)
        GradientState._reset_state()

    def build(value):
        forget()
        stage = TrainInput.model_validate(value)
        trainer = loop.build(stage, strategy.in_effect(stage), None, scratch / "checkpoints", Vitals())
        trainer.publisher = SimpleNamespace(wait=lambda: None, start=lambda _: None)
        return trainer

    where = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with pytest.MonkeyPatch.context() as patch:
        for name, text in (where | {"TUNESMITH_PVC_ROOT": str(store.root), "TUNESMITH_SCRATCH": str(scratch)}).items():
            patch.setenv(name, text)
        try:
            yield build
        finally:
            forget()
            if distributed.is_initialized():
                distributed.destroy_process_group()


class Bench:
    """A store with the claims `models` (the tiny model at `base`) and `data` (chat.jsonl), and ways to run stages on it."""

    def __init__(self, folder, tiny_model):
        self.folder = folder
        self.root = folder / "pvc"
        shutil.copytree(tiny_model, self.root / "models" / "base")
        write_rows(self.root / "data" / "chat.jsonl", conversations(60))
        self.runs = 0

    def path(self, uri):
        """Where a URI lies."""
        return self.root / uri.removeprefix("pvc://")

    def settings(self, value):
        """The environment variables of a run of a stage, with the stage file written."""
        self.runs += 1
        place = self.folder / f"run-{self.runs}"
        place.mkdir()
        (place / "stage.json").write_text(json.dumps(value))
        return {
            "TUNESMITH_PVC_ROOT": str(self.root),
            "TUNESMITH_STAGE_FILE": str(place / "stage.json"),
            "TUNESMITH_TERMINATION_LOG": str(place / "termination-log"),
            "HF_HUB_OFFLINE": "1",
        }

    def run(self, value):
        """Run a stage in this process; returns its exit code and its termination message."""
        from tunesmith_trainer.runner import main

        settings = self.settings(value)
        with pytest.MonkeyPatch.context() as patch:
            for name, text in settings.items():
                patch.setenv(name, text)
            code = main()
        return code, json.loads(Path(settings["TUNESMITH_TERMINATION_LOG"]).read_text())

    def start(self, value, index=0, **extra):
        """Start a stage as a pod would, in a process of its own; with the variables of the fixture `zygote`, one that is forked."""
        return Pod(self.settings(value) | LAUNCH | {"JOB_COMPLETION_INDEX": str(index)} | extra)


class Pod:
    """A stage running in a process of its own."""

    def __init__(self, settings):
        self.message = Path(settings["TUNESMITH_TERMINATION_LOG"])
        self.log = self.message.with_name("log")
        environment = os.environ | settings | {"PYTHONPATH": f"{ROOT}/trainer-image:{ROOT}/contract"}
        with self.log.open("w") as log:
            command = [settings.get("ZYGOTE_PYTHON", sys.executable), "-m", "tunesmith_trainer"]
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def wait(self, seconds=PATIENCE):
        """Wait for its end; returns its exit code and its termination message."""
        try:
            code = self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"still running after {seconds} s: {self.log.read_text()[-3000:]}") from None
        assert self.message.exists(), self.log.read_text()[-3000:]
        return code, json.loads(self.message.read_text())
