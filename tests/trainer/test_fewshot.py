"""The prompts of few-shot tasks, as the model is given them. Case harness-fewshot, and others of its kind."""

import json

import pytest

from dev.rows import write_rows
from tests.trainer.models import evaluate_input
from tunesmith_contract.evaluation import Harness
from tunesmith_trainer import evaluate
from tunesmith_trainer.errors import StageError
from tunesmith_trainer.suites import harness

WORDS = "amber birch cedar dune ember fjord grove haven".split()
TASK = """\
task: rivers
dataset_path: json
dataset_kwargs: {data_files: %s}
output_type: multiple_choice
doc_to_text: "Question: {{question}} Answer:"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
ROWS = [{"question": f"which is {word}", "choices": ["yes", "no"], "answer": number % 2} for number, word in enumerate(WORDS)]
TEST_ALONE = {"files": {"test": "rivers.jsonl"}, "lines": "test_split: test\n"}


def write(root, lines, files, rows=ROWS, task=TASK):
    folder = root / "data" / "tasks"
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "rivers.jsonl", rows)
    (folder / "rivers.yaml").write_text(task % json.dumps(files) + lines)


def load(shots, tmp_path, **more):
    settings = Harness.model_validate({"tasks": ["rivers"], "includePath": "pvc://data/tasks", "numFewshot": shots} | more)
    return harness.load(settings, tmp_path / "copy")


def prompts(shots, tmp_path, **more):
    """Each document with the prompt that lm-eval makes for it, drawn in lm-eval's order."""
    tasks = load(shots, tmp_path, **more)
    (task,) = tasks.leaves.values()
    if task.config.num_fewshot != 0:
        task.set_config(key="num_fewshot", value=shots)
    task.set_fewshot_seed(seed=harness.SEEDS["fewshot_random_seed"])
    task.build_all_requests()
    return {instance.doc_id: (instance.doc, instance.args[0]) for instance in task.instances}


def examples(prompt):
    return [part.split(" Answer:")[0].strip() for part in prompt.split("Question: ")[1:-1]]


def leaks(found):
    return [prompt for document, prompt in found.values() if document["question"].casefold() in [text.casefold() for text in examples(prompt)]]


@pytest.mark.parametrize(
    ("lines", "files"),
    [
        ("test_split: test\n", {"test": "rivers.jsonl"}),
        ("test_split: test\nfewshot_split: test\n", {"test": "rivers.jsonl"}),
        ("test_split: test\nfewshot_config: {sampler: first_n}\n", {"test": "rivers.jsonl"}),
        ("test_split: test\nfewshot_split: test\nfewshot_config: {sampler: first_n}\n", {"test": "rivers.jsonl"}),
        ("validation_split: validation\n", {"validation": "rivers.jsonl"}),
        ("validation_split: validation\nfewshot_split: validation\n", {"validation": "rivers.jsonl"}),
        ("test_split: test\ntraining_split: train\n", {"test": "rivers.jsonl", "train": "rivers.jsonl"}),
        ("test_split: test\nfewshot_split: train\n", {"test": "rivers.jsonl", "train": "rivers.jsonl"}),
    ],
)
@pytest.mark.parametrize("shots", [2, 7])
def test_no_prompt_holds_the_question_that_it_asks(base_store, tmp_path, lines, files, shots):
    write(base_store, lines, files)
    found = prompts(shots, tmp_path)
    assert len(found) == len(ROWS)
    assert leaks(found) == []
    assert {len(examples(prompt)) for _, prompt in found.values()} == {shots}


@pytest.mark.parametrize("sampler", ["default", "first_n"])
def test_no_prompt_holds_another_row_with_the_same_question(base_store, tmp_path, sampler):
    again = [row | {"question": row["question"].upper() + " ", "choices": ["no", "yes", "maybe"], "id": number} for number, row in enumerate(ROWS)]
    rows = [row | {"id": -1} for row in ROWS] + again
    write(base_store, f"test_split: test\nfewshot_split: test\nfewshot_config: {{sampler: {sampler}}}\n", {"test": "rivers.jsonl"}, rows)
    found = prompts(6, tmp_path)
    assert len(found) == 16
    assert [
        prompt for document, prompt in found.values() if document["question"].casefold().strip() in [text.casefold() for text in examples(prompt)]
    ] == []


@pytest.mark.parametrize("columns", [False, True], ids=["a list of choices", "a column for each choice"])
def test_no_prompt_holds_its_question_with_the_choices_in_another_order(base_store, tmp_path, columns):
    kinds = [("sand", "salt", "soot"), ("soot", "sand", "salt")]
    rows = [
        {"question": f"what is {word}", "choices": list(kind), "answer": 0, "a": kind[0], "b": kind[1], "c": kind[2]}
        for kind in kinds
        for word in WORDS
    ]
    shown = "{{a}}, {{b}} or {{c}}" if columns else "{{choices|join(', ')}}"
    task = TASK.replace("{{question}}", "{{question}}: " + shown)
    write(base_store, "test_split: test\nfewshot_split: test\n", {"test": "rivers.jsonl"}, rows, task)
    for document, prompt in prompts(10, tmp_path).values():
        asked = [text.split(":")[0] for text in examples(prompt)]
        assert len(asked) == 10
        assert document["question"] not in asked


def test_examples_on_the_same_passage_are_no_own_question(base_store, tmp_path):
    rows = [
        {"question": f"which is {word}", "passage": f"Of rivers {number // 4}", "choices": ["yes", "no"], "answer": 0}
        for number, word in enumerate(WORDS)
    ]
    task = TASK.replace("Question: {{question}}", "{{passage}}. Question: {{question}}")
    write(base_store, "test_split: test\nfewshot_split: test\n", {"test": "rivers.jsonl"}, rows, task)
    found = prompts(7, tmp_path)
    assert leaks(found) == []
    assert {len(examples(prompt)) for _, prompt in found.values()} == {7}


def test_examples_that_a_task_file_holds_are_not_asked_either(base_store, tmp_path):
    samples = json.dumps([ROWS[3], ROWS[5], {"question": "which is other", "choices": ["yes", "no"], "answer": 0}])
    write(base_store, f"test_split: test\nfewshot_config: {{sampler: first_n, samples: {samples}}}\n", {"test": "rivers.jsonl"})
    assert leaks(prompts(2, tmp_path)) == []


def test_tasks_whose_question_is_in_the_choices_still_have_examples(base_store, tmp_path):
    rows = [{"question": "", "choices": [f"{word} is good", f"{word} are good"], "answer": 0} for word in WORDS]
    task = TASK.replace("Question: {{question}} Answer:", "Which is right? Answer:")
    write(base_store, **{"lines": "test_split: test\n", "files": {"test": "rivers.jsonl"}}, rows=rows, task=task)
    for document, prompt in prompts(4, tmp_path).values():
        assert prompt.count("Which is right?") == 5
        assert document["choices"][0] not in prompt


def test_examples_are_those_that_lm_eval_draws_where_none_is_the_question(base_store, tmp_path):
    from lm_eval.tasks import TaskManager

    others = [{"question": f"what is {number}", "choices": ["yes", "no"], "answer": 0} for number in range(30)]
    write(base_store, "test_split: test\ntraining_split: train\n", {"test": "rivers.jsonl", "train": "others.jsonl"})
    write_rows(base_store / "data" / "tasks" / "others.jsonl", others)
    ours = prompts(3, tmp_path)
    copy = tmp_path / "copy"
    (task,) = TaskManager(include_path=str(copy), include_defaults=False).load(["rivers"])["tasks"].values()
    task.set_config(key="num_fewshot", value=3)
    task.set_fewshot_seed(seed=1234)
    task.build_all_requests()
    assert {instance.doc_id: instance.args[0] for instance in task.instances} == {number: prompt for number, (_, prompt) in ours.items()}


@pytest.mark.parametrize(("rows", "shots"), [(ROWS, 8), (ROWS, 20), (ROWS * 3, 22), (ROWS[:1], 1)])
def test_more_examples_than_there_are_other_questions_are_refused(base_store, tmp_path, rows, shots):
    write(base_store, "test_split: test\n", {"test": "rivers.jsonl"}, rows)
    with pytest.raises(StageError, match="numFewshot: task rivers has") as caught:
        load(shots, tmp_path)
    assert caught.value.reason == "InvalidSettings"


def test_a_task_that_has_no_examples_by_its_own_choice_is_left_alone(base_store, tmp_path):
    write(base_store, "test_split: test\nnum_fewshot: 0\n", {"test": "rivers.jsonl"}, ROWS[:1])
    ((_, prompt),) = prompts(5, tmp_path).values()
    assert examples(prompt) == []


def test_the_case_harness_fewshot_by_the_whole_stage(base_store, monkeypatch):
    import lm_eval.models.huggingface as huggingface

    seen, own = [], huggingface.HFLM.loglikelihood
    monkeypatch.setattr(huggingface.HFLM, "loglikelihood", lambda self, requests, **more: seen.extend(requests) or own(self, requests, **more))
    write(base_store, **TEST_ALONE)
    suites = [{"name": "s", "harness": {"tasks": ["rivers"], "includePath": "pvc://data/tasks", "numFewshot": 7}}]
    answer = evaluate.run(evaluate.INPUT.model_validate(evaluate_input("pvc://models/base", suites=suites)))
    assert answer.metrics[0].samples == 8
    given = {request.doc["question"]: request.args[0] for request in seen}
    assert len(given) == 8
    assert [prompt for question, prompt in given.items() if question in examples(prompt)] == []
