"""What a row may say, in each format: used, or refused by name; nothing that changes what is learnt is left out in silence."""

import pytest

from tests.trainer.bench import make_tokenizer
from tests.trainer.templates import shipped, tokenizer
from tests.trainer.test_templates import ANSWER, CALL, FOUND, LAST, QUESTION, SECOND, TOOLS, trained
from tunesmith_trainer.data import formats
from tunesmith_trainer.data.chat import Encoder
from tunesmith_trainer.data.dataset import texts
from tunesmith_trainer.errors import RowError

SHIPPED = shipped()
QWEN = tokenizer(SHIPPED["qwen2_5"])


def normal(row, data_format="Messages"):
    """A row in its normal form."""
    return formats.normalise(row, data_format)[0]


def answers(row, tokens=QWEN, data_format="Messages"):
    """The texts that are trained of a row as it stands in a file."""
    return [text for _, text in trained(tokens, normal(row, data_format))]


def refused(row, tokens=QWEN, data_format="Messages"):
    """What is said of a row that is refused."""
    with pytest.raises(RowError) as error:
        Encoder(tokens, answers=True).encode(normal(row, data_format))
    return str(error.value)


def messages(*given, **columns):
    """A row of the format Messages."""
    return {"messages": list(given)} | columns


def test_fields_dropped_calls_of_tools_and_their_tools_are_trained():
    row = messages(QUESTION, {"role": "assistant", "content": "let me see", "tool_calls": [CALL]}, FOUND, LAST, tools=TOOLS)
    call = 'let me see\n<tool_call>\n{"name": "find_river", "arguments": {"where": "north"}}\n</tool_call><|im_end|>'
    assert answers(row) == [call, "A2<|im_end|>"]
    (before, _), _ = trained(QWEN, normal(row))
    assert '"description": "finds it"' in before
    for content in (None, "", "absent"):
        turn = {"role": "assistant", "content": content, "tool_calls": [CALL]}
        if content == "absent":
            del turn["content"]
        assert answers(messages(QUESTION, turn)) == [call.removeprefix("let me see\n")]


def test_fields_dropped_tools_may_be_a_json_text_as_data_sets_on_hubs_have_them():
    import json

    row = messages(QUESTION, {"role": "assistant", "content": None, "tool_calls": json.dumps([CALL])}, tools=json.dumps(TOOLS))
    assert normal(row) == normal(messages(QUESTION, {"role": "assistant", "content": None, "tool_calls": [CALL]}, tools=TOOLS))
    assert refused(messages(QUESTION, ANSWER, tools="[{")) == "'tools' is a text, but not one that holds JSON"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"weight": 0}, ["A2<|im_end|>"]),
        ({"weight": 0.0}, ["A2<|im_end|>"]),
        ({"weight": 1}, ["A1<|im_end|>", "A2<|im_end|>"]),
        ({"weight": None}, ["A1<|im_end|>", "A2<|im_end|>"]),
        ({"train": False}, ["A2<|im_end|>"]),
        ({"training": False}, ["A2<|im_end|>"]),
        ({"loss": False}, ["A2<|im_end|>"]),
        ({"loss": True, "weight": 1}, ["A1<|im_end|>", "A2<|im_end|>"]),
    ],
)
def test_fields_dropped_an_answer_with_a_weight_of_nothing_is_read_and_not_trained(flags, expected):
    row = messages(QUESTION, ANSWER | flags, SECOND, LAST)
    assert answers(row) == expected
    assert "A1" in trained(QWEN, normal(row))[-1][0]


@pytest.mark.parametrize("row", [messages(QUESTION, ANSWER | {"weight": 0}, SECOND, LAST), messages(QUESTION | {"train": False}, ANSWER)])
def test_a_weight_of_nothing_is_refused_where_the_loss_is_on_everything(row):
    with pytest.raises(RowError, match="needs method"):
        Encoder(QWEN, answers=False).encode(normal(row))


def test_a_question_with_a_weight_of_nothing_is_as_one_without():
    assert answers(messages(QUESTION | {"train": False}, ANSWER)) == answers(messages(QUESTION, ANSWER))


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (messages(QUESTION, ANSWER | {"weight": 0.5}), "messages[1].weight must be 0 or 1"),
        (messages(QUESTION, ANSWER | {"weight": "0"}), "messages[1].weight must be 0 or 1"),
        (messages(QUESTION, ANSWER | {"weight": 1, "train": False}), "both that it is trained and that it is not"),
        (messages(QUESTION | {"train": True}, ANSWER), "messages[0].train says that a message of the role user is trained"),
        (messages(QUESTION, ANSWER | {"reasoning_content": "R1"}), "messages[1].reasoning_content: the model's chat template does not render it"),
        (messages(QUESTION | {"name": "bob"}, ANSWER), "messages[0].name: the model's chat template does not render it"),
        (messages(QUESTION, ANSWER | {"mask": 1}), "messages[1].mask: the model's chat template does not render it"),
        (messages(QUESTION, ANSWER | {"prefix": True}), "messages[1].prefix: the model's chat template does not render it"),
        (
            messages(QUESTION, ANSWER | {"function_call": {"name": "f", "arguments": "{}"}}),
            "messages[1].function_call is not used: write it as tool_calls",
        ),
        (messages(QUESTION, {"role": "assistant", "content": None, "refusal": "no"}), "messages[1].content must be a text"),
        (messages(QUESTION, ANSWER | {"refusal": "no"}), "messages[1].refusal is not used"),
        (messages(QUESTION | {"images": ["a.png"]}, ANSWER), "messages[0].images is not used: only texts"),
        (messages(QUESTION, {"role": "assistant", "tool_calls": [{"id": "a"}]}), "messages[1].tool_calls[0] must be an object with a function"),
        (
            messages(QUESTION, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}),
            "tool_calls[0].function.arguments must be",
        ),
        (messages(QUESTION, ANSWER, documents=[{"title": "t", "text": "d"}]), "documents: the model's chat template does not render them"),
        (messages(QUESTION, ANSWER, documents="d"), "'documents' is a text, but not one that holds JSON"),
        (messages(QUESTION, ANSWER, tools=["f"]), "'tools' must be a list of objects"),
        (messages(QUESTION, ANSWER, chat_template_kwargs={"enable_thinking": False}), "chat_template_kwargs.enable_thinking"),
        (messages(QUESTION, ANSWER, chat_template_kwargs={"add_generation_prompt": True}), "chat_template_kwargs.add_generation_prompt"),
        (messages(QUESTION, ANSWER, functions=[{"name": "f"}]), "'functions' is not used: write them as tools"),
        (messages(QUESTION, ANSWER, system="S"), "'system' is not used: write it as the first message"),
        (messages(QUESTION, ANSWER, images=["a.png"]), "'images' is not used: only texts can be trained on"),
        (messages(QUESTION, ANSWER, weight=0.5), "'weight' is not used: what is trained is said by the weight of a message"),
        (messages(QUESTION, ANSWER, loss_mask=[0, 1]), "'loss_mask' is not used: what is trained is said by the weight of a message"),
        (messages(QUESTION, ANSWER, split="test"), "its column 'split' says that the row is held out"),
        (messages(QUESTION, ANSWER, split="test_sft"), "its column 'split' says that the row is held out"),
        (messages(QUESTION, ANSWER, partition="Dev"), "its column 'partition' says that the row is held out"),
        (messages(QUESTION, ANSWER, is_test=True), "its column 'is_test' says that the row is held out"),
        (messages(QUESTION, ANSWER, instructions="S"), "'instructions' is not used: write it as the first message"),
        (messages(QUESTION, ANSWER, **{"System Prompt": "S"}), "'System Prompt' is not used: write it as the first message"),
        (messages(QUESTION, ANSWER, image_url="a.png"), "'image_url' is not used: only texts can be trained on"),
        (messages(QUESTION, ANSWER, loss_weights=[0, 1]), "'loss_weights' is not used: what is trained is said by the weight of a message"),
    ],
)
def test_fields_dropped_what_cannot_be_used_is_refused_by_name(row, complaint):
    assert complaint in refused(row)


@pytest.mark.parametrize(
    ("column", "data_format", "complaint"),
    [
        ("context", "PromptCompletion", "'context' is not used: write it into the prompt"),
        ("suffix", "PromptCompletion", "'suffix' is not used: write it into the prompt"),
        ("input", "PromptCompletion", "'input' is not used: write it into the prompt"),
        ("instruction", "PromptCompletion", "'instruction' is not used: write it into the prompt"),
        ("context", "Alpaca", "'context' is not used: write it as the input"),
    ],
)
def test_fields_dropped_what_a_question_says_beside_itself_is_refused_by_name(column, data_format, complaint):
    row = {"prompt": "cat", "completion": "dog"} if data_format == "PromptCompletion" else {"instruction": "cat", "output": "dog"}
    with pytest.raises(RowError, match=complaint):
        normal(row | {column: "red"}, data_format)


def test_fields_dropped_columns_that_mean_no_held_out_row_are_left_out():
    row = messages(QUESTION, ANSWER, split="train_sft", partition="train", is_test=False, prompt="cat", instruction="cat")
    assert formats.normalise(row, "Messages")[1] == {"split", "partition", "is_test", "prompt", "instruction"}


def test_fields_dropped_the_name_of_a_key_that_may_be_data_is_not_quoted():
    assert "canary" not in refused(messages(QUESTION, ANSWER | {"canary-9b1d": 1}))


def test_fields_dropped_reasoning_is_trained_under_whatever_name_the_template_has_for_it():
    tokens = tokenizer(SHIPPED["qwen3"])
    for key in ("reasoning_content", "reasoning", "thinking"):
        assert answers(messages(QUESTION, ANSWER | {key: "R1"}), tokens) == ["<think>\nR1\n</think>\n\nA1<|im_end|>"]
    assert "which differ" in refused(messages(QUESTION, ANSWER | {"reasoning": "R1", "thinking": "R2"}), tokens)


def test_fields_dropped_a_text_beside_a_call_is_refused_where_the_template_renders_the_call_alone():
    row = messages(QUESTION, {"role": "assistant", "content": "let me see", "tool_calls": [CALL]})
    assert "messages[1].content beside its calls of tools" in refused(row, tokenizer(SHIPPED["llama3_1"]))


def test_fields_dropped_one_call_of_several_that_the_template_leaves_out_is_refused():
    source = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + (m.content or '') }}"
    source += "{% if m.tool_calls %}{{ m.tool_calls[0] | tojson }}{% endif %}"
    source += "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    both = messages(QUESTION, {"role": "assistant", "tool_calls": [CALL, CALL | {"id": "b"}]})
    assert "messages[1].tool_calls[1]: the model's chat template does not render it" in refused(both, tokenizer(source))


@pytest.mark.parametrize("role", ["tool", "function", "ipython"])
def test_fields_dropped_a_role_that_the_template_leaves_out_is_refused(role):
    source = (
        "{% for m in messages %}{% if m.role in ['user', 'assistant'] %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}"
    )
    source += "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    row = messages(QUESTION, ANSWER, {"role": role, "content": "T1"}, LAST)
    assert f"messages[2].content of the role {role}: the model's chat template does not render it" in refused(row, tokenizer(source))


def test_the_role_developer_is_rendered_as_system_where_the_template_has_none_as_servers_do():
    developer = messages({"role": "developer", "content": "S1"}, QUESTION, ANSWER)
    assert trained(QWEN, normal(developer)) == trained(QWEN, normal(messages({"role": "system", "content": "S1"}, QUESTION, ANSWER)))


def test_a_null_or_an_empty_value_is_none():
    empty = dict.fromkeys(("tool_calls", "name", "reasoning_content", "weight", "function_call", "refusal", "audio"))
    row = messages(
        QUESTION | empty, ANSWER | empty | {"annotations": [], "tool_calls": []}, tools=[], documents=None, images=[], system="", functions=None
    )
    assert normal(row) == messages(QUESTION, ANSWER)


def test_row_shapes_columns_that_only_describe_a_row_are_left_out_and_named():
    row, left = formats.normalise(
        messages(QUESTION | {"id": "m1", "timestamp": 3}, ANSWER, id=7, source="x", score=float("nan"), meta={"a": [1, None]}), "Messages"
    )
    assert row == messages(QUESTION, ANSWER)
    assert left == {"id", "source", "score", "meta", "messages[].id", "messages[].timestamp"}


def test_row_shapes_several_parts_are_joined_as_a_server_does_or_given_as_the_template_takes_them():
    content = [{"type": "text", "text": "P1"}, {"type": "text", "text": "P2", "image": None}]
    row = messages({"role": "user", "content": content}, ANSWER)
    assert "P1\nP2" in trained(QWEN, normal(row))[0][0]
    assert "P1P2" in trained(tokenizer(SHIPPED["qwen2_5_vl"]), normal(row))[0][0]
    assert normal(messages({"role": "user", "content": content[:1]}, ANSWER)) == messages({"role": "user", "content": "P1"}, ANSWER)
    picture = messages({"role": "user", "content": [*content, {"type": "image_url", "image_url": {"url": "x"}}]}, ANSWER)
    assert "messages[0].content[2] must be a part of the type text" in refused(picture)


@pytest.mark.parametrize(
    ("row", "data_format", "complaint"),
    [
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, "Messages", "this is a ShareGPT row"),
        ({"messages": [{"from": "human", "value": "a"}]}, "Messages", "this is a ShareGPT row"),
        ({"messages": [{"role": "human", "content": "a"}]}, "Messages", "write user"),
        ({"messages": [{"role": "Assistant", "content": "a"}]}, "Messages", "write assistant"),
        ({"messages": '[{"role": "user"}]'}, "Messages", "here it is a text: write the list itself"),
        ({"messages": None}, "Messages", "'messages' must be a list"),
        ({"messages": {"role": ["user"], "content": ["a"]}}, "Messages", "here it is an object: write the list itself"),
        ({"conversations": [QUESTION, ANSWER]}, "Messages", "the messages stand under 'conversations': call them messages"),
        ({"conversation": [QUESTION, ANSWER]}, "Messages", "the messages stand under 'conversation': call them messages"),
        ({"prompt": "a", "completion": "b"}, "Messages", "the row has the keys of the format PromptCompletion"),
        ({"instruction": "a", "output": "b"}, "Text", "the row has the keys of the format Alpaca"),
        ({"messages": [QUESTION, ANSWER]}, "PromptCompletion", "the row has the keys of the format Messages"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "PromptCompletion", "this is a row of preference"),
        ({"prompt": "a", "completion": "b", "label": False}, "PromptCompletion", "'label' says whether the answer is a good one"),
        ({"prompt": "a", "completion": "b", "tools": TOOLS}, "PromptCompletion", "'tools' is not used: write the rows as messages"),
        ({"prompt": "a", "completion": "b", "system": "s"}, "PromptCompletion", "'system' is not used"),
        ({"prompt": [QUESTION], "completion": "b"}, "PromptCompletion", "'completion' must be a list of messages"),
        ({"prompt": [QUESTION], "completion": [SECOND]}, "PromptCompletion", "no message of the assistant"),
        ({"prompt": "a", "completion": "b</s>c"}, "PromptCompletion", "the completion holds '</s>', by which it ends"),
        ({"instruction": "a", "output": "b", "system": "s"}, "Alpaca", "'system' is not used: Alpaca's wording has no place for it"),
        ({"instruction": "a", "output": "b", "history": [["a", "b"]]}, "Alpaca", "'history' is not used: Alpaca's wording has no place for it"),
        ({"text": "a", "images": ["x"]}, "Text", "'images' is not used"),
    ],
)
def test_row_shapes_another_shape_is_named(row, data_format, complaint):
    assert complaint in refused(row, data_format=data_format)


def test_a_prompt_and_a_completion_of_messages_train_the_completion_alone_whatever_the_loss_is_on():
    row = {"prompt": [QUESTION, ANSWER, SECOND], "completion": [LAST], "tools": TOOLS}
    for answers_only in (True, False):
        (sequence,) = Encoder(QWEN, answers=answers_only).encode(normal(row, "PromptCompletion")).sequences
        assert QWEN.decode([token for token, on in zip(sequence.ids, sequence.trained, strict=True) if on]) == "A2<|im_end|>"
    assert "completion[0] holds" in refused(row | {"completion": [LAST | {"content": "A2<|im_end|>"}]}, data_format="PromptCompletion")


def test_alpaca_keeps_its_own_wording():
    plain = normal({"instruction": "dog", "input": "", "output": "bird", "system": "", "history": []}, "Alpaca")
    assert plain["prompt"] == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\ndog\n\n### Response:\n"
    )


def test_patterns_look_at_every_text_of_a_row_and_not_at_its_roles():
    row = normal(messages(QUESTION, ANSWER | {"reasoning_content": "R1"}, {"role": "assistant", "tool_calls": [CALL]}, FOUND, tools=TOOLS))
    found = list(texts(row))
    assert {"Q1", "A1", "R1", "north", "T1", "finds it"} <= set(found)
    assert not {"user", "assistant", "function", "text"} & set(found)


def test_plain_rows_stay_as_they_were_so_that_runs_split_them_alike():
    assert normal(messages(QUESTION, ANSWER)) == messages(QUESTION, ANSWER)
    assert normal({"prompt": "a", "completion": " b"}, "PromptCompletion") == {"prompt": "a", "completion": " b"}
    assert Encoder(make_tokenizer(), answers=False).encode({"text": "red"}).sequences[0].trained[-1]
