"""What a training needs of memory: the estimate beside real steps, and what is refused for it."""

import json
from dataclasses import replace

import pytest

from tests.bench import memory as benchmark
from tests.trainer import bench
from tunesmith_contract.stages import Pods, Run
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.training import footprint, memory
from tunesmith_trainer.training.footprint import Batch, Footprint

SMALL = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 2048}
# Llama 3.1 8B, but for its number of layers.
WIDTHS = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256}
FOUR = {"nodes": 2, "processesPerNode": 2}
GIB = 1 << 30


def run_of(**changes):
    return Run.model_validate(bench.run_block(**changes))


def pods(**train):
    cpu = {"device": "CPU", "memory": 4 * GIB}
    return {"train": cpu | train, "finalize": cpu, "quantize": cpu}


@pytest.fixture
def folder(tmp_path):
    """Writes the config.json of an architecture, with no weights."""
    from transformers import CONFIG_MAPPING

    def write(kind, **changes):
        CONFIG_MAPPING[kind](**changes).save_pretrained(tmp_path / kind)
        return tmp_path / kind

    return write


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The benchmark's parts on a model that is as narrow as shows anything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        return benchmark.Measured(tmp_path_factory.mktemp("memory"), "llama", SMALL)


@pytest.mark.parametrize(
    "case",
    [
        benchmark.Case("llama", "LoRA, dropout", 4, 128, "autocast"),
        benchmark.Case("llama", "full", 2, 128, "autocast", checkpointing=True),
    ],
    ids=str,
)
def test_the_estimate_is_within_a_quarter_of_what_a_real_step_takes(measured, case):
    assert measured.estimate(case) == pytest.approx(measured.real(case), rel=benchmark.MOST_ERROR)


@pytest.mark.parametrize(("adapter", "units"), [("0", 26.5), ("0.05", 45.5), (None, 33.6)])
def test_a_layer_keeps_what_was_counted_by_hand(folder, adapter, units):
    lora = {"lora": {"r": 16, "loraAlpha": 32, "loraDropout": adapter, "targetModules": ["all-linear"]}} if adapter else None
    alone = {"training": bench.training(precision="BF16"), "adapter": lora}
    tokens, layers = 16384, []
    for count in (1, 2):
        place = folder("llama", num_hidden_layers=count, max_position_embeddings=32768, **WIDTHS)
        layers.append(footprint.measure(place, run_of(**alone), "GPU", Batch(1, tokens), whole=True))
    # Weights that are trained are kept as cast to bf16 too.
    casts = 0 if lora else (layers[1].weights - layers[0].weights) / 2
    # In units of one tensor of the layer's width in bf16: saved tensors of one layer, counted on the CPU.
    assert (layers[1].step - layers[0].step - casts) / (tokens * 4096 * 2) == pytest.approx(units, rel=0.15)


@pytest.mark.parametrize("kind", ["opt", "qwen3_moe", "gpt_neox"])
def test_an_architecture_of_another_kind_is_measured(folder, kind):
    short = {"num_hidden_layers": 1} | ({"num_experts": 8, "decoder_sparse_step": 1} if kind == "qwen3_moe" else {})
    place = folder(kind, **short)
    for adapter in (None, bench.run_block()["adapter"]):
        found = footprint.measure(place, run_of(adapter=adapter, training=bench.training(precision="FP32")), "GPU", Batch(1, 64), whole=True)
        assert found.step > found.gradients > 0


def test_padding_and_packing_cost_a_mask_in_each_layer_and_one_row_does_not(folder):
    place = folder("llama", **SMALL)
    one, four, packed = (
        footprint.measure(place, run_of(adapter=None), "GPU", batch, whole=True).step
        for batch in (Batch(1, 1024), Batch(4, 256), Batch(4, 256, True))
    )
    # A mask in bf16 for each of two layers, and one of booleans: 4 of 256 x 256, or one of 1024 x 1024.
    assert four - one == pytest.approx(4 * 256 * 256 * 5, rel=0.5, abs=2**21)
    assert packed - four == pytest.approx((1024 * 1024 - 4 * 256 * 256) * 5, rel=0.3)


def toy(**changes):
    """A footprint of a model of 4 layers of 1000 numbers in 32 bits, and 1000 outside of them."""
    return replace(Footprint(20000, 20000, 5000, 7000, 4000, 1000, 4000, 4000), **changes)


def test_the_estimate_divides_what_a_strategy_shards():
    plain = {"adapter": None, "training": bench.training(precision="FP32")}
    ddp, zero2, zero3, fsdp = (
        run_of(parallelism=FOUR | strategy, **plain)
        for strategy in ({"ddp": {}}, {"deepSpeed": {"zeroStage": 2}}, {"deepSpeed": {"zeroStage": 3}}, {"fsdp": {}})
    )
    assert memory._whole(toy(), ddp, "GPU") == memory.Need(20000, 40000, 27000, 5000)
    # Moments, gradients and weights in 32 bits in shards; a layer's gradients travel in two forms.
    assert memory._sharded(toy(), zero2) == memory.Need(20000 + 5000, 10000, 7000 + 5000 + 8000, 5000)
    assert memory._sharded(toy(), zero3).weights == 5000 + 5000
    # Two layers and what is outside of them are gathered, and gradients of the latter.
    assert memory._sharded(toy(), fsdp) == memory.Need(5000, 10000, 7000 + 5000 + 8000 + 8000 + 8000, 5000)


def test_the_estimate_knows_four_bits_and_optimizers():
    need = memory.Need(20000, 0, 7000)
    assert need.total - memory._in_four_bits(need, toy(), run_of()).total == int(4000 * (2 - 0.52)) - 2000
    eight = run_of(adapter=None, training=bench.training(overrides={"optim": '"adamw_8bit"'}))
    assert memory._whole(toy(), eight, "GPU").optimizer == 10500


def test_a_training_that_needs_more_than_a_gpu_has_is_refused_with_its_levers():
    need = memory.Need(15 * GIB, 1 * GIB, 84 * GIB)
    room = Pods.model_validate(pods(device="GPU", gpuMemory=80 * GIB))
    with pytest.raises(StageError) as refusal:
        memory.check(run_of(), room, need, {})
    assert refusal.value.reason == "InsufficientMemory"
    assert refusal.value.exit_code == 64
    for words in ("100.0 GiB", "80.0 GiB", "perDeviceTrainBatchSize", "maxLength", "gradientCheckpointing", "fsdp", "adapter.lora", "NF4"):
        assert words in refusal.value.message
    memory.check(run_of(), Pods.model_validate(pods(device="GPU", gpuMemory=101 * GIB)), need, {})
    memory.check(run_of(), None, need, {})
    memory.check(run_of(), room, "not known", {})


def test_processes_that_each_convert_the_whole_model_need_their_hosts_memory():
    full = run_of(adapter=None, parallelism={"nodes": 1, "processesPerNode": 8, "fsdp": {}}, output={"uri": "pvc://x", "artifacts": ["Merged"]})
    stored = memory.Counter({"BF16": 8 * 10**9})
    host = memory.train_host(full, "GPU", stored, "not known")
    assert host.least == 8 * 8 * 10**9 * 4
    with pytest.raises(StageError, match=r"at least 238.4 GiB .* with 8 processes that each load the whole model.*resources.memory is 128.0 GiB"):
        memory.check(full, Pods.model_validate(pods(memory=128 * GIB)), "not known", {"train": host})
    # A frozen base of the type that is stored stays in its file, whose pages the kernel can drop.
    assert memory.train_host(run_of(), "GPU", stored, "not known").least == 0
    assert memory.train_host(run_of(), "GPU", memory.Counter({"F32": 8 * 10**9}), "not known").least == 16 * 10**9
    # Finalize loads 32 bits of full fine-tuning as bf16.
    assert memory.finalize_host(full, stored).least == 16 * 10**9
    assert memory.finalize_host(run_of(output={"uri": "pvc://x", "artifacts": ["Adapter"]}), stored).least == 0


def test_prepare_refuses_by_gpu_memory_which_is_no_part_of_the_run(store):
    refused = bench.prepare_input() | {"pods": pods(device="GPU", gpuMemory=2**20)}
    code, result = store.run(refused)
    assert (code, result["reason"]) == (64, "InsufficientMemory")
    assert "resources.gpuMemory is 1 MiB" in result["message"]
    code, fits = store.run(bench.prepare_input() | {"pods": pods(device="GPU", gpuMemory=2**33)})
    assert code == 0
    assert fits["memoryNeed"].startswith("a process of Train needs about")
    assert set(fits["hostMemoryBytes"]) == {"train", "finalize"}
    recorded = json.loads((store.path(fits["runURI"]) / "run.json").read_text())
    assert recorded["run"] == run_of().dump()


def test_what_cannot_be_measured_is_unknown_and_refuses_nothing(store):
    given = bench.training(overrides={"activation_offloading": "true"})
    code, result = store.run(bench.prepare_input(training=given) | {"pods": pods(device="GPU", gpuMemory=2**20)})
    assert code == 0, result
    assert "memoryEstimateBytes" not in result
    assert result["memoryNeed"] == "unknown: training.overrides.activation_offloading changes what is kept in memory"
