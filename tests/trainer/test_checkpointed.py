"""The mixin that writes our checkpoints, over three of TRL's trainers: one that was stopped and goes on trains as one that was not."""

from types import SimpleNamespace

import pytest

from tests.trainer.bench import OBJECT
from tunesmith_contract.stages import JobInput
from tunesmith_trainer.training import checkpoint, fence

STEPS, STOP = 6, 3
PAIR = {"prompt": "red green", "chosen": " blue one two", "rejected": " three cat"}


def rows(*columns):
    from datasets import Dataset

    return Dataset.from_list([{name: f"{PAIR[name]} {'dog ' * (number % 3)}".rstrip() for name in columns} for number in range(12)])


def sft():
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    return SFTTrainer, SFTConfig, rows("prompt").rename_column("prompt", "text"), {"max_length": 32}


def dpo():
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    return DPOTrainer, DPOConfig, rows("prompt", "chosen", "rejected"), {"max_length": 32}


def reward():
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import RewardTrainer

    return RewardTrainer, RewardConfig, rows("chosen", "rejected"), {"max_length": 32}


class Attempt:
    """One attempt at a training of STEPS steps, by the class that the mixin and the method's trainer make."""

    def __init__(self, method, run, tiny_model, number, staging):
        from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

        from tunesmith_trainer.training import loop
        from tunesmith_trainer.training.checkpointed import Checkpointed
        from tunesmith_trainer.training.group import Meeting
        from tunesmith_trainer.training.stopping import SaveAndStop
        from tunesmith_trainer.training.uploader import Place, Publisher
        from tunesmith_trainer.training.watchdog import Vitals

        loop.prepare_transformers()
        base, config, dataset, settings = method()
        stage = JobInput(schema_version=2, stage="Train", device="CPU", object=OBJECT, attempt=number)
        self.resumed, vitals, self.flag = checkpoint.newest(run), Vitals(), SimpleNamespace(is_set=False)
        arguments = config(
            output_dir=str(staging), max_steps=STEPS, per_device_train_batch_size=2, learning_rate=1e-2, logging_steps=1, seed=3, use_cpu=True,
            bf16=False, report_to=[], save_strategy="no", disable_tqdm=True, **settings,
        )  # fmt: skip
        kind, more = (AutoModelForSequenceClassification, {"num_labels": 1}) if method is reward else (AutoModelForCausalLM, {})
        model = kind.from_pretrained(self.resumed or tiny_model, dtype="float32", **more)
        made = type(base.__name__, (Checkpointed, base), {})
        tokenizer = AutoTokenizer.from_pretrained(tiny_model)
        reference = {"ref_model": kind.from_pretrained(tiny_model, dtype="float32")} if method is dpo else {}
        self.trainer = made(model=model, args=arguments, processing_class=tokenizer, train_dataset=dataset, **reference)
        self.trainer.vitals, self.trainer.meeting = vitals, Meeting(vitals)
        self.trainer.publisher = Publisher(Place(run, number, 2), fence.claim(stage, run), staging, vitals)
        self.saving = SaveAndStop(self.trainer, self.flag, 100)
        self.trainer.add_callback(self.saving)

    def run(self, stop=0):
        """Train; `stop`: SIGTERM comes in that step. Returns the losses by step."""
        from transformers import TrainerCallback

        flag = self.flag

        class Stop(TrainerCallback):
            def on_step_begin(self, args, state, control, **_):
                if state.global_step + 1 == stop:
                    flag.is_set = True

        self.trainer.add_callback(Stop())
        self.trainer.train(resume_from_checkpoint=str(self.resumed) if self.resumed else None)
        self.trainer.publisher.wait()
        return {entry["step"]: entry["loss"] for entry in self.trainer.state.log_history if "loss" in entry}


@pytest.mark.parametrize("method", [sft, dpo, reward], ids=["SFT", "DPO", "Reward"])
def test_a_training_that_was_stopped_goes_on_with_the_losses_of_one_that_was_not(method, tiny_model, tmp_path):
    whole = Attempt(method, tmp_path / "whole", tiny_model, 1, tmp_path / "staging-whole").run()
    first = Attempt(method, tmp_path / "run", tiny_model, 1, tmp_path / "staging-1")
    before = first.run(stop=STOP)
    assert first.saving.interrupted
    second = Attempt(method, tmp_path / "run", tiny_model, 2, tmp_path / "staging-2")
    assert second.resumed.name == f"{checkpoint.PREFIX}-{STOP}"
    after = second.run()
    assert list(whole) == list(range(1, STEPS + 1))
    assert sorted({*before, *after}) == list(whole)
    assert {step: before.get(step, after.get(step)) for step in whole} == pytest.approx(whole, abs=1e-4)
    assert after[STEPS] != pytest.approx(whole[STOP], abs=1e-4), "the losses must differ from step to step, or they prove nothing"
