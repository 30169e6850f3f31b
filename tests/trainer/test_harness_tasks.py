import json

import pytest
import yaml

from tunesmith_trainer.errors import StageError
from tunesmith_trainer.suites.harness_tasks import copy_tasks

TASK = """\
task: colours
dataset_path: json
dataset_kwargs: {data_files: {test: data/colours.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
metric_list: [{metric: acc}]
"""


@pytest.fixture
def folder(tmp_path):
    source = tmp_path / "tasks"
    (source / "data").mkdir(parents=True)
    (source / "data" / "colours.jsonl").write_text(json.dumps({"question": "?"}) + "\n")
    (source / "colours.yaml").write_text(TASK)
    return source


def copied(folder):
    return copy_tasks(folder, folder.parent / "copy")


def refusal(folder, text, name="colours.yaml"):
    (folder / name).write_text(text)
    with pytest.raises(StageError) as caught:
        copied(folder)
    assert caught.value.reason == "InvalidSettings"
    return caught.value.message


def test_data_files_beside_the_task_become_absolute_in_the_copy(folder):
    found = copied(folder)
    task = yaml.safe_load((found.folder / "colours.yaml").read_text())
    data = folder.resolve() / "data" / "colours.jsonl"
    assert task["dataset_kwargs"]["data_files"] == {"test": str(data)}
    assert found.data_files == (data,)
    assert {key: value for key, value in task.items() if key != "dataset_kwargs"} == {
        key: value for key, value in yaml.safe_load(TASK).items() if key != "dataset_kwargs"
    }


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("process_docs: !function utils.process", "!function"),
        ("doc_to_text: !!python/name:os.system", "python/name"),
        ("metadata: {a: [1, !!python/object/apply:os.system [id]]}", "python/object"),
        ("class: evil.Task", "class"),
        ("use_prompt: prompts.yaml:x", "use_prompt"),
        ("metric_list: [{metric: acc, hf_evaluate: true}]", "hf_evaluate"),
        ("metric_list: [{metric: ./evil}]", "evil"),
        ("dataset_path: pandas", "dataset_path"),
        ("dataset_path: ./loader.py", "dataset_path"),
        ("dataset_kwargs: {trust_remote_code: true}", "trust_remote_code"),
        ("dataset_kwargs: {data_files: {test: /etc/passwd}}", "outside"),
        ("dataset_kwargs: {data_files: {test: ../../secret.jsonl}}", "outside"),
        ("dataset_kwargs: {data_files: {test: 'https://example.org/x.jsonl'}}", "not the path"),
        ("dataset_kwargs: {data_files: {test: absent.jsonl}}", "does not exist"),
        ("include: /usr/lib/other.yaml", "outside"),
        ("task: [{task: other, dataset_path: pandas}]", "dataset_path"),
        ("unsafe_code: true", "unsafe_code"),
        ("a: [", "not YAML"),
    ],
)
def test_what_runs_code_or_reaches_outside_is_refused_with_file_and_line(folder, line, why):
    message = refusal(folder, "output_type: multiple_choice\n" + line + "\n")
    assert message.startswith("colours.yaml, line ")
    assert why in message
    if why != "not YAML":
        assert "line 2" in message


def test_a_refused_key_is_found_in_an_included_file_of_any_name(folder):
    (folder / "common.txt").write_text("class: evil.Task\n")
    assert "common.txt, line 1" in refusal(folder, "include: common.txt\n" + TASK)


def test_a_data_file_that_is_a_link_out_of_the_folder_is_refused(folder, tmp_path):
    (tmp_path / "secret.jsonl").write_text("{}\n")
    (folder / "data" / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    assert "outside" in refusal(folder, TASK.replace("colours.jsonl", "link.jsonl"))


def test_a_task_file_that_is_a_link_out_of_the_folder_is_refused(folder, tmp_path):
    (tmp_path / "other.yaml").write_text(TASK)
    (folder / "other.yaml").symlink_to(tmp_path / "other.yaml")
    with pytest.raises(StageError, match=r"other\.yaml is a link"):
        copied(folder)


def test_a_cycle_of_yaml_aliases_ends(folder):
    (folder / "colours.yaml").write_text(TASK + "metadata: &a {b: 1}\nmore: *a\n")
    assert copied(folder).task_files == ((folder / "colours.yaml").resolve(),)


def test_a_folder_without_task_files_is_told(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(StageError) as caught:
        copy_tasks(tmp_path / "empty", tmp_path / "copy")
    assert caught.value.reason == "SourceNotFound"
