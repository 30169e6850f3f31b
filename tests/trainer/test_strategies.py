"""FSDP2, ZeRO-2, ZeRO-3 and QLoRA against DDP: the same losses, and shares of the state that were measured, not asked for."""

import json
import subprocess
from types import SimpleNamespace

import pytest

from tests.trainer import bench, by_hand
from tunesmith_trainer.errors import StageError

pytestmark = pytest.mark.timeout(600)

STEPS = 12
# Each training but DDP's own is stopped by SIGTERM and goes on with another number of processes: (processes, told to stop at).
ATTEMPTS = {"full": [(2, 4), (1, 8), (2, None)], "lora": [(1, 4), (2, None)], "bf16": [(1, 4), (2, None)]}
STRATEGIES = {"fsdp": {"fsdp": {}}, "zero2": {"deepSpeed": {"zeroStage": 2}}, "zero3": {"deepSpeed": {"zeroStage": 3}}}
# What a run trains, and how. The learning rates let losses move enough in a few steps to tell a wrong state from a right one.
RUNS = {
    "lora": {"training": bench.training(maxSteps=STEPS, precision="FP32", learningRate="1e-2")},
    "full": {
        "training": bench.training(maxSteps=STEPS, precision="FP32", learningRate="1e-3"),
        "adapter": None,
        "output": {"uri": "pvc://models/out", "artifacts": ["Merged"]},
    },
}
# The default precision. What is computed in 16 bits, and what is kept in 32 beside it, is each strategy's own.
RUNS["bf16"] = RUNS["full"] | {"training": RUNS["full"]["training"] | {"precision": "BF16"}}
# A rate at which the second step's gradients are no longer finite.
OFF = RUNS["bf16"] | {"training": RUNS["bf16"]["training"] | {"learningRate": "1e30"}}
# One step of four gradients, none of them clipped, so that the optimizer's state tells their sum.
SUMMED = RUNS["bf16"] | {"training": RUNS["bf16"]["training"] | {"maxSteps": 1, "maxGradNorm": "1e9"}}
# In 32 bits only sums are in another order: 1e-6 of a loss near 6 is what is left after a dozen steps.
SAME = {"lora": 1e-5, "full": 1e-5, "bf16": 0.03}


class Training:
    """The attempts of one run, from its stage files to what came of them."""

    def __init__(self, folder, tiny_model, strategy, attempts, untouched=False, micro_batches=2, **blocks):
        self.untouched = untouched
        self.micro_batches = micro_batches
        self.store = bench.Bench(folder, tiny_model)
        blocks["parallelism"] = {"nodes": 1, "processesPerNode": 2} | strategy
        code, self.prepared = self.store.run(bench.prepare_input(**blocks))
        assert code == 0, self.prepared
        self.folder = self.store.path(self.prepared["runURI"])
        self.attempts = [self._attempt(number, *attempt, blocks) for number, attempt in enumerate(attempts, 1)]

    def _attempt(self, number, processes, stop_at, blocks):
        stage = bench.train_input(self.prepared, 1, attempt=number, **blocks)
        stage["rendezvous"]["processesPerNode"] = processes
        # As the operator does: the global batch is the same on fewer processes.
        stage["training"] = blocks["training"] | {"gradientAccumulationSteps": self.micro_batches // processes}
        stage["parallelism"] = blocks["parallelism"]
        if "baseQuantization" in blocks:
            stage["baseQuantization"] = blocks["baseQuantization"]
        folder = self.store.folder / f"attempt-{number}"
        folder.mkdir()
        (folder / "stage.json").write_text(json.dumps(stage))
        play = {"stage": str(folder / "stage.json"), "folder": str(folder), "root": str(self.store.root)}
        play |= {"processes": processes, "stopAt": stop_at, "untouched": self.untouched}
        return SimpleNamespace(stage=stage, folder=folder, play=play)

    def outcomes(self, number):
        """What the processes of an attempt answered."""
        attempt = self.attempts[number - 1]
        paths = [attempt.folder / f"outcome-{rank:04d}.json" for rank in range(attempt.play["processes"])]
        assert all(path.exists() for path in paths), (attempt.folder / "log-0").read_text()[-4000:]
        return [json.loads(path.read_text()) for path in paths]

    @property
    def answer(self):
        """What the first process answered at the end."""
        last = self.outcomes(len(self.attempts))[0]
        assert "answer" in last, (last, (self.attempts[-1].folder / "log-0").read_text()[-4000:])
        return last["answer"]

    @property
    def losses(self):
        """The loss of each step."""
        lines = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        return {line["step"]: line["loss"] for line in lines if "loss" in line}


@pytest.fixture(scope="module")
def trainings(tmp_path_factory, tiny_model, zygote):
    """All trainings of this file, run one after another where there is no compiler."""
    root = tmp_path_factory.mktemp("strategies")

    def prepare(name, strategy, attempts, **settings):
        (root / name).mkdir()
        return Training(root / name, tiny_model, strategy, attempts, **settings)

    made = {}
    for kind, blocks in RUNS.items():
        made[f"ddp-{kind}"] = prepare(f"ddp-{kind}", {"ddp": {}}, [(2, None)], **blocks)
        for name, strategy in STRATEGIES.items():
            made[f"{name}-{kind}"] = prepare(f"{name}-{kind}", strategy, ATTEMPTS[kind], **blocks)
    for name, strategy in STRATEGIES.items():
        made[f"{name}-off"] = prepare(f"{name}-off", strategy, [(2, None)], **OFF)
        made[f"{name}-summed"] = prepare(f"{name}-summed", strategy, [(2, None)], micro_batches=4, **SUMMED)
    made["qlora"] = prepare("qlora", {"ddp": {}}, ATTEMPTS["lora"], baseQuantization="NF4", **RUNS["lora"])
    made["not-sharded"] = prepare("not-sharded", {"fsdp": {}}, [(2, None)], untouched=True, **RUNS["lora"])
    plan = root / "plan.json"
    plan.write_text(json.dumps([attempt.play for training in made.values() for attempt in training.attempts]))
    environment = {
        "PATH": str(root / "no-compiler"),
        "HOME": str(root),
        "TMPDIR": str(root),
        "TORCH_EXTENSIONS_DIR": str(root / "compiled"),
        "PYTHONPATH": f"{bench.ROOT}/trainer-image:{bench.ROOT}/contract:{bench.ROOT}",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    command = [zygote["ZYGOTE_PYTHON"], "-m", "tests.trainer.trainings", str(plan)]
    done = subprocess.run(command, env=environment | zygote, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return made


@pytest.mark.parametrize("kind", RUNS)
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_stopped_and_gone_on_with_on_more_and_on_fewer_processes_has_the_losses_of_ddp(trainings, name, kind):
    expected, got = trainings[f"ddp-{kind}"], trainings[f"{name}-{kind}"]
    assert list(expected.losses) == list(range(1, STEPS + 1))
    assert got.losses == pytest.approx(expected.losses, abs=SAME[kind])
    assert got.answer["evalLoss"] == pytest.approx(expected.answer["evalLoss"], abs=SAME[kind])
    # The curve is one that a state lost on the way would not follow.
    assert max(expected.losses.values()) - min(expected.losses.values()) > 0.1


@pytest.mark.parametrize("kind", RUNS)
def test_the_validation_loss_of_several_processes_is_that_of_a_plain_loop(trainings, kind):
    """The rows do not divide by the processes: those that fill the last batch up count for nothing."""
    training = trainings[f"ddp-{kind}"]
    assert training.prepared["validationRows"] % 2
    base = training.store.path(training.prepared["model"]["uri"])
    rows = by_hand.rows_of(base, training.folder / "data" / "validation.jsonl", 64)
    expected = by_hand.loss(by_hand.load(training.store.path(training.answer["checkpoint"]["uri"]), base), rows)
    assert training.answer["evalLoss"] == pytest.approx(expected, abs=0.002 if kind == "bf16" else 1e-5)


@pytest.mark.parametrize("kind", RUNS)
@pytest.mark.parametrize("name", STRATEGIES)
def test_the_training_loss_is_that_of_all_attempts(trainings, name, kind):
    expected, got = trainings[f"ddp-{kind}"].answer["trainLoss"], trainings[f"{name}-{kind}"].answer["trainLoss"]
    assert got == pytest.approx(expected, abs=SAME[kind])
    # Not that of the last attempt's steps.
    losses = trainings[f"{name}-{kind}"].losses
    assert abs(sum(losses[step] for step in range(9, 13)) / 4 - got) > 0.05


@pytest.mark.parametrize("name", STRATEGIES)
def test_gradients_are_added_up_in_32_bits(trainings, name):
    """Each of the four summands is computed in 16 bits, so their sum in 16 bits would be rounded to 8 bits of mantissa everywhere."""
    import torch

    training = trainings[f"{name}-summed"]
    state = torch.load(training.store.path(training.answer["checkpoint"]["uri"]) / "optimizer.pt")["state"]
    for weight, values in state.items():
        gradient = values["exp_avg"] / 0.1
        rounded = (gradient - gradient.bfloat16().float()).abs() <= 2e-6 * gradient.abs()
        assert gradient.dim() == 1 or rounded.float().mean() < 0.6, weight


@pytest.mark.parametrize("kind", RUNS)
@pytest.mark.parametrize("name", STRATEGIES)
def test_sigterm_to_one_process_makes_all_save_the_same_step(trainings, name, kind):
    *stopped, _ = ATTEMPTS[kind]
    for number, (_, step) in enumerate(stopped, 1):
        failures = [outcome["failure"] for outcome in trainings[f"{name}-{kind}"].outcomes(number)]
        assert {failure["reason"] for failure in failures} == {"Interrupted"}, failures
        assert {failure["details"]["globalStep"] for failure in failures} == {step}
    assert trainings[f"{name}-{kind}"].answer["resumedFromStep"] == stopped[-1][1]


@pytest.mark.parametrize("name", STRATEGIES)
def test_all_processes_of_a_training_that_diverges_say_so_and_save_nothing(trainings, name):
    outcomes = trainings[f"{name}-off"].outcomes(1)
    assert {outcome["failure"]["reason"] for outcome in outcomes} == {"Diverged"}, outcomes
    assert not list(trainings[f"{name}-off"].folder.glob("checkpoints/*/*"))


@pytest.mark.parametrize("kind", RUNS)
def test_under_ddp_each_process_holds_all(trainings, kind):
    held = trainings[f"ddp-{kind}"].answer["sharding"]
    assert held["parameterBytesPerRank"] == held["totalParameterBytes"]
    assert held["optimizerBytesPerRank"] >= 8 * held["trainableParameters"]


@pytest.mark.parametrize("kind", RUNS)
@pytest.mark.parametrize("name", STRATEGIES)
def test_each_of_two_processes_holds_half(trainings, name, kind):
    held = trainings[f"{name}-{kind}"].answer["sharding"]
    weights = held["parameterBytesPerRank"] / held["totalParameterBytes"]
    assert weights == (1 if name == "zero2" else pytest.approx(0.5, abs=0.02))
    assert held["optimizerBytesPerRank"] / (8 * held["trainableParameters"]) == pytest.approx(0.5, abs=0.02)


def test_a_training_that_is_ddp_where_fsdp_was_asked_for_ends_after_its_first_step(trainings):
    """Left alone, accelerate has no FSDP on a CPU and says nothing."""
    for outcome in trainings["not-sharded"].outcomes(1):
        assert outcome["failure"]["reason"] == "NoEffect"
        assert "parallelism.fsdp was asked for, but a process holds 460032 of 460032 bytes of weights" in outcome["failure"]["message"]
    assert list(trainings["not-sharded"].losses) in ([], [1])


@pytest.mark.parametrize(
    ("strategy", "weights", "state", "refused"),
    [
        ({"ddp": {}}, 400, 800, None),
        ({"fsdp": {}}, 200, 400, None),
        ({"fsdp": {}}, 400, 400, "of weights"),
        ({"fsdp": {}}, 200, 800, "the optimizer's state"),
        ({"deepSpeed": {"zeroStage": 2}}, 400, 404, None),
        ({"deepSpeed": {"zeroStage": 2}}, 400, 800, "the optimizer's state"),
        ({"deepSpeed": {"zeroStage": 3}}, 204, 404, None),
        ({"deepSpeed": {"zeroStage": 3}}, 400, 404, "of weights"),
    ],
)
def test_what_is_held_is_compared_with_what_was_asked_for(strategy, weights, state, refused):
    from tunesmith_contract.results import Sharding
    from tunesmith_contract.training import Parallelism
    from tunesmith_trainer.training import sharding_check

    held = Sharding(parameter_bytes_per_rank=weights, optimizer_bytes_per_rank=state, total_parameter_bytes=400, trainable_parameters=100)
    asked = Parallelism.model_validate({"nodes": 1, "processesPerNode": 2} | strategy)
    if refused is None:
        sharding_check.check(held, asked, 2)
    else:
        with pytest.raises(StageError, match=refused):
            sharding_check.check(held, asked, 2)


def test_a_base_that_should_be_in_four_bits_and_is_not_is_refused():
    import torch

    from tunesmith_trainer.training.sharding_check import MeasureSharding

    measuring = MeasureSharding(SimpleNamespace(base_quantization="NF4", device="CPU"), None)
    with pytest.raises(StageError, match="no weight is quantized"):
        measuring.on_train_begin(None, None, None, model=torch.nn.Linear(2, 2))


def test_nothing_was_compiled_for_it(trainings):
    assert not (trainings["zero3-full"].store.folder.parent / "compiled").exists()


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_artefacts_are_the_same_from_each_strategy(trainings, kind):
    """Finalize reads one form of checkpoint: weights equal DDP's but for what rounding to bf16 makes of the last bit."""
    import torch
    from safetensors.torch import load_file

    def merged(training):
        stage = bench.finalize_input(training.attempts[-1].stage, training.answer)
        if kind == "full":
            stage["artifacts"] = ["Merged"]
        code, result = training.store.run(stage)
        assert code == 0, result
        assert [artifact["name"] for artifact in result["artifacts"]] == stage["artifacts"]
        return load_file(training.folder / "merged" / "model.safetensors")

    expected = merged(trainings[f"ddp-{kind}"])
    for name in STRATEGIES:
        got = merged(trainings[f"{name}-{kind}"])
        assert got.keys() == expected.keys()
        for key, tensor in expected.items():
            torch.testing.assert_close(got[key], tensor, rtol=2**-7, atol=1e-4)


def test_a_base_in_four_bits_trains_an_adapter_with_losses_near_loras(trainings):
    lora, qlora = trainings["ddp-lora"], trainings["qlora"]
    assert qlora.answer["sharding"]["trainableParameters"] == lora.answer["sharding"]["trainableParameters"]
    # The tiny model's linear layers, in bytes: 73,728 weights, of which 4 bits and 0.13 of scales are left for each of 32.
    saved = lora.answer["sharding"]["totalParameterBytes"] - qlora.answer["sharding"]["totalParameterBytes"]
    assert saved == pytest.approx(73728 * (4 - 0.5), rel=0.01)
    assert list(qlora.losses) == list(lora.losses)
    assert qlora.losses == pytest.approx(lora.losses, abs=0.05)
    assert qlora.losses != pytest.approx(lora.losses, abs=1e-4)
    assert max(qlora.losses.values()) - min(qlora.losses.values()) > 0.1
