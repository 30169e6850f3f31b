"""What Train reports against a plain loop over rows. (That it is so on several processes, and for all strategies: test_strategies.)"""

from types import SimpleNamespace

import pytest

from dev.rows import WORDS, write_rows
from tests.trainer import bench, by_hand

pytestmark = pytest.mark.timeout(600)
SIZES = (1, 9, 3, 14, 2, 6, 11, 4)
HELD = {"dataset": {"uri": "pvc://data/held.jsonl", "format": "Messages"}}


def conversations(count=8):
    """Conversations with answers of unlike lengths."""
    for number in range(count):
        size = SIZES[number % len(SIZES)]
        question = " ".join(WORDS[(number + step) % len(WORDS)] for step in range(1 + number % 3))
        answer = " ".join(WORDS[(3 * number + step * 5) % len(WORDS)] for step in range(size))
        yield {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def blocks_of(packing=False, validation=HELD, **training):
    """A run's blocks in 32 bits."""
    settings = {"maxSteps": 1, "precision": "FP32", "maxLength": 256, "learningRate": "3e-2"} | training
    return {"training": bench.training(**settings), "method": {"sft": {"packing": packing, "assistantOnlyLoss": True}}, "validation": validation}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, tiny_model):
    """A store with a prepared run: its trainings differ in what Prepare does not write."""
    store = bench.Bench(tmp_path_factory.mktemp("losses"), tiny_model)
    write_rows(store.root / "data" / "held.jsonl", conversations())
    write_rows(store.root / "data" / "chat.jsonl", conversations(30))
    code, answer = store.run(bench.prepare_input(**blocks_of()))
    assert code == 0, answer
    return SimpleNamespace(store=store, answer=answer, folder=store.path(answer["runURI"]), base=store.path(answer["model"]["uri"]))


@pytest.fixture
def build(prepared):
    """Builds trainers of the prepared run, with other settings than it was prepared with."""
    with bench.training_alone(prepared.store) as built:
        yield lambda **changes: built(bench.train_input(prepared.answer, 1, **blocks_of(**changes)))


def curve(trainer):
    """The logged losses by step."""
    return {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}


def test_loss_by_hand_the_validation_loss_is_that_of_a_plain_loop_whatever_the_batch_and_the_packing(prepared, build):
    rows = by_hand.rows_of(prepared.base, prepared.folder / "data" / "validation.jsonl", 256)
    expected = by_hand.loss(by_hand.load(prepared.base), rows)
    assert len(rows) == len(SIZES)
    for packing, size in ((False, 1), (False, 3), (False, 8), (True, 1), (True, 3)):
        measured = build(packing=packing, perDeviceTrainBatchSize=size).evaluate()
        assert measured["eval_loss"] == pytest.approx(expected, abs=1e-6), (packing, size)


def test_the_first_batch_of_an_evaluation_which_may_compile_is_no_part_of_a_step(build):
    trainer = build()
    trainer.vitals.begin(0)
    phases, step = [], trainer.prediction_step
    trainer.prediction_step = lambda *given, **settings: phases.append(trainer.vitals.phase) or step(*given, **settings)
    trainer.evaluate()
    assert set(phases) == {"evaluating"}


def test_loss_by_hand_the_training_loss_is_the_mean_over_all_tokens_whatever_is_logged(build):
    trained = []
    for every in (1, 4, 10):
        trainer = build(maxSteps=7, loggingSteps=every, perDeviceTrainBatchSize=2, maxLength=128, validation=None)
        trainer.train()
        trained.append(trainer)
    each, fours, none = trained
    assert each.ledger.run.loss == fours.ledger.run.loss == none.ledger.run.loss
    assert (list(curve(each)), list(curve(fours)), list(curve(none))) == (list(range(1, 8)), [4, 7], [7])
    # The curve has all steps, those since its last line too.
    assert curve(none) == {7: none.ledger.run.loss}
    # Steps have unlike numbers of trained tokens, so the mean of their losses is another one.
    assert sum(curve(each).values()) / 7 != pytest.approx(each.ledger.run.loss, abs=1e-4)
    assert each.state.log_history[-1]["train_loss"] == each.ledger.run.loss


def test_a_run_that_goes_on_has_the_sums_of_the_steps_before(tmp_path):
    from tunesmith_trainer.training.losses import Ledger, Sums

    first = Ledger(SimpleNamespace(take=lambda: Sums(nats=6.0, trained=4, real=9)))
    first.settle()
    first.save(tmp_path)
    second = Ledger(SimpleNamespace(take=lambda: Sums(nats=2.0, trained=1, real=5)))
    second.load(tmp_path)
    second.settle()
    assert (second.run.loss, second.run.real, second.attempt.real) == (8.0 / 5, 14, 5)
    # The line of the curve that the steps before began.
    assert second.close_window().loss == 8.0 / 5
    assert second.close_window().trained == 0


def test_the_loss_of_a_run_that_an_older_image_began_is_unknown(tmp_path, capsys):
    from tunesmith_trainer.training.losses import Ledger, Sums

    ledger = Ledger(SimpleNamespace(take=lambda: Sums(nats=2.0, trained=1, real=5)))
    ledger.load(tmp_path)
    ledger.settle()
    ledger.save(tmp_path)
    assert (ledger.run, ledger.attempt.loss, list(tmp_path.iterdir())) == (None, 2.0, [])
    assert "the training loss of the whole run is unknown" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("packing", "overrides"), [(False, {}), (True, {}), (False, {"pad_to_multiple_of": "16"}), (True, {"pad_to_multiple_of": "16"})]
)
def test_the_tokens_that_are_counted_are_the_rows_and_no_padding(prepared, build, packing, overrides):
    rows = by_hand.rows_of(prepared.base, prepared.folder / "data" / "train.jsonl", 256)
    trainer = build(packing=packing, perDeviceTrainBatchSize=len(rows), overrides=overrides)
    trainer.train()
    assert trainer.ledger.attempt.real == sum(len(row.ids) for row in rows)
    assert trainer.ledger.attempt.trained == sum(label != -100 for row in rows for label in row.labels[1:])
    assert trainer.ledger.run.loss == pytest.approx(by_hand.loss(by_hand.load(prepared.base), rows), abs=1e-5)


def test_a_class_of_models_whose_own_loss_counts_otherwise_is_trained_on_the_mean_over_tokens_too(tmp_path):
    """transformers takes GPT-2's loss for one that does not shift labels: it would divide by a token more for each row."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(1)
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64, "vocab_size": 512}
    config = GPT2Config(**sizes, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    bench.make_tokenizer().save_pretrained(tmp_path / "gpt2")
    store = bench.Bench(tmp_path / "bench", tmp_path / "gpt2")
    write_rows(store.root / "data" / "texts.jsonl", [{"text": " ".join(WORDS[:size])} for size in SIZES])
    texts = {"datasets": [{"name": "texts", "uri": "pvc://data/texts.jsonl", "format": "Text"}], "adapter": None}
    texts |= {"method": {"sft": {"packing": False, "assistantOnlyLoss": False}}, "preparation": {"minTokens": 1}}
    code, answer = store.run(bench.prepare_input(**blocks_of(maxLength=64, validation=None) | texts))
    assert code == 0, answer
    model = by_hand.load(store.path(answer["model"]["uri"]))
    rows = by_hand.rows_of(store.path(answer["model"]["uri"]), store.path(answer["runURI"]) / "data" / "train.jsonl", 64, only_assistant=False)
    expected = by_hand.gradient_norm(model, rows)
    with bench.training_alone(store) as build:
        for size in (8, 1):
            settings = {"perDeviceTrainBatchSize": size, "gradientAccumulationSteps": 8 // size, "maxLength": 64}
            trainer = build(bench.train_input(answer, 1, **blocks_of(validation=None, **settings) | texts))
            trainer.train()
            assert trainer.state.log_history[0]["grad_norm"] == pytest.approx(expected, rel=1e-5), size
