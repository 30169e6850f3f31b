import math

import pytest

from dev.rows import write_rows
from tunesmith_contract.evaluation import Perplexity
from tunesmith_trainer import evaluate
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.model.base import load_tokenizer
from tunesmith_trainer.suites import items, perplexity
from tunesmith_trainer.suites.perplexity import Row, Score


def row(length):
    return Row([0] * length, [True] * length, length)


def settings(name, data_format, max_length=64):
    return Perplexity.model_validate({"dataset": {"uri": f"pvc://data/{name}", "format": data_format}, "maxLength": max_length})


def test_perplexity_weighs_tokens_and_not_rows():
    value, error = perplexity.perplexity([Score(1.0, 1, 4), Score(9.0, 9, 36)])
    assert value == pytest.approx(math.e)
    assert error == pytest.approx(0.0, abs=1e-12)


def test_standard_errors_are_those_of_a_ratio_of_sums():
    import random

    chance = random.Random(7)

    def sample(count):
        sizes = [chance.randint(1, 40) for _ in range(count)]
        return [Score(sum(chance.gauss(2, 1) for _ in range(size)), size, 4 * size) for size in sizes]

    values = [perplexity.perplexity(sample(200))[0] for _ in range(300)]
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    assert perplexity.perplexity(sample(200))[1] == pytest.approx(spread, rel=0.25)


def test_one_row_has_no_standard_error():
    assert perplexity.perplexity([Score(2.0, 2, 8)]) == (pytest.approx(math.e), None)


def test_bits_per_byte_is_nats_over_bytes_in_bits():
    assert perplexity.bits_per_byte([Score(8 * math.log(2), 3, 8)])[0] == pytest.approx(1.0)


@pytest.mark.parametrize(("nll", "written"), [(math.nan, "NaN"), (math.inf, "Infinity"), (1e6, "Infinity")])
def test_a_perplexity_that_went_wrong_is_told_as_such(nll, written):
    assert items.written(perplexity.perplexity([Score(nll, 1, 1)])[0]) == written


def test_batches_hold_the_tokens_they_may_when_padded():
    lengths = [[len(r.ids) for r in batch] for batch in perplexity.batches([row(n) for n in (2, 3, 5, 6, 30)], 12)]
    assert lengths == [[2, 3], [5, 6], [30]]


def test_only_the_assistants_tokens_and_their_end_count_in_conversations(base_store):
    tokenizer = load_tokenizer(base_store / "models" / "base")
    rows = [{"messages": [{"role": "user", "content": "cat dog"}, {"role": "assistant", "content": "dog cat"}] * 2}]
    write_rows(base_store / "data" / "m.jsonl", rows)
    (found,) = perplexity.read_rows(settings("m.jsonl", "Messages", 512), tokenizer)
    scored = tokenizer.decode([token for token, counts in zip(found.ids, found.trained, strict=True) if counts])
    assert scored == "dog cat<|im_end|>" * 2
    assert found.size == len("dog cat" * 2)


@pytest.mark.parametrize(
    ("data_format", "data", "scored"),
    [
        ("PromptCompletion", {"prompt": "cat", "completion": " dog"}, " dog<|im_end|>"),
        ("Alpaca", {"instruction": "cat", "input": "", "output": "dog"}, "dog<|im_end|>"),
    ],
)
def test_only_the_completion_counts_after_a_prompt(base_store, data_format, data, scored):
    tokenizer = load_tokenizer(base_store / "models" / "base")
    write_rows(base_store / "data" / "p.jsonl", [data])
    (found,) = perplexity.read_rows(settings("p.jsonl", data_format, 512), tokenizer)
    assert tokenizer.decode([token for token, counts in zip(found.ids, found.trained, strict=True) if counts]) == scored


def test_all_of_a_text_counts_but_its_first_token(base_store):
    tokenizer = load_tokenizer(base_store / "models" / "base")
    write_rows(base_store / "data" / "t.jsonl", [{"text": "red green blue"}])
    (found,) = perplexity.read_rows(settings("t.jsonl", "Text"), tokenizer)
    assert found.trained == [False] + [True] * (len(found.ids) - 1)


def test_rows_are_cut_at_max_length_and_those_with_nothing_left_are_left_out(base_store):
    tokenizer = load_tokenizer(base_store / "models" / "base")
    long = {"prompt": "cat " * 40, "completion": "dog"}
    write_rows(base_store / "data" / "l.jsonl", [long, {"prompt": "cat", "completion": "dog dog dog dog dog dog"}])
    (found,) = perplexity.read_rows(settings("l.jsonl", "PromptCompletion", 8), tokenizer)
    assert len(found.ids) == 8
    write_rows(base_store / "data" / "n.jsonl", [long])
    with pytest.raises(StageError) as caught:
        perplexity.read_rows(settings("n.jsonl", "PromptCompletion", 8), tokenizer)
    assert caught.value.reason == "EmptyDataset"


def test_a_template_that_writes_the_day_writes_the_same_one_always(base_store):
    tokenizer = load_tokenizer(base_store / "models" / "base")
    template = "{{ strftime_now('%d %b %Y') }}"
    with evaluate.one_day():
        written = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], chat_template=template, tokenize=False)
    assert written == "26 Jul 2024"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}], chat_template=template, tokenize=False) != written


def test_items_are_the_rows_in_the_datas_order(in_zoo):
    suite = perplexity.measure(
        "s", settings("test.jsonl", "Messages"), evaluate.load_model(in_zoo.root / "models" / "base", "FP32", "CPU"), in_zoo_tokenizer(in_zoo)
    )
    sample = suite.sample("s/perplexity")
    assert [int(name.split("-")[0]) for name in sample.ids] == list(range(40))
    assert len(set(sample.column.bottoms)) > 3
    assert sample.figure.ends == (0.0, math.log(512))
    assert sample.figure.units.startswith("sha256:")
    assert suite.sample("s/bits_per_byte").column.tops[0] == pytest.approx(sample.column.tops[0] / math.log(2))


def in_zoo_tokenizer(zoo):
    return load_tokenizer(zoo.root / "models" / "base")
