"""What of a conversation is trained under each chat template that a pinned library ships, and under some in the style of others."""

import copy
import json

import pytest

from tests.trainer.bench import make_tokenizer
from tests.trainer.templates import MISTRAL, VICUNA, ZEPHYR, shipped, tokenizer
from tunesmith_trainer.data import chat
from tunesmith_trainer.errors import RowError, StageError

SHIPPED = shipped()
OWN = {"mistral": MISTRAL, "zephyr": ZEPHYR, "vicuna": VICUNA}
# Of a family of templates, by the beginning of its name: how a turn ends.
ENDS = {
    "cohere2": "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>", "cohere": "<|END_OF_TURN_TOKEN|>", "deepseek": "<\uff5cend▁of▁sentence\uff5c>",
    "diffusion_gemma": "<turn|>", "gemma4": "<turn|>", "gemma": "<end_of_turn>", "gptoss": "<|return|>", "idefics3": "<end_of_utterance>",
    "llama3": "<|eot_id|>", "llava": "</s>", "muse": "<|eot|>", "smolvlm": "<end_of_utterance>",
    "glm4moe": "<|user|>",  # the template ends no turn: the model stops by beginning the next one
    "phi3": "<|end|>",  # and not by the token that ends the whole conversation
    "lfm2": "<|im_end|>", "nemotron": "<|im_end|>", "qwen": "<|im_end|>", "mistral": "</s>", "zephyr": "</s>", "vicuna": "</s>",
}  # fmt: skip
# What a model has to produce before its own words: a server's prompt ends before it.
HEADS = {"gptoss": "<|channel|>final<|message|>", "muse": " to=user<|message|>", "glm4moe": "\n"} | dict.fromkeys(
    ("idefics3", "smolvlm", "llava", "mistral", "vicuna"), " "
)
CALL_ENDS = {
    "gptoss": "<|call|>",
    "gemma4": "<|tool_response>",
    "diffusion_gemma": "<|tool_response>",
    "glm4moe": "<|observation|>",
    "gemma4_v2": "<turn|>",
}
QUESTION, SECOND = {"role": "user", "content": "Q1"}, {"role": "user", "content": "Q2"}
ANSWER, LAST = {"role": "assistant", "content": "A1"}, {"role": "assistant", "content": "A2"}
TOOLS = [{"type": "function", "function": {"name": "find_river", "description": "finds it", "parameters": {"type": "object", "properties": {}}}}]
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "find_river", "arguments": {"where": "north"}}}
FOUND = {"role": "tool", "content": "T1", "tool_call_id": "abcdefghi", "name": "find_river"}
PROBES = {
    "turns": {"messages": [QUESTION, ANSWER, SECOND, LAST]},
    "system": {"messages": [{"role": "system", "content": "S1"}, QUESTION, ANSWER]},
    "tools": {"messages": [QUESTION, {"role": "assistant", "content": "", "tool_calls": [CALL]}, FOUND, LAST], "tools": TOOLS},
    "reasoning": {"messages": [QUESTION, ANSWER | {"reasoning_content": "R1"}, SECOND, LAST | {"reasoning_content": "R2"}]},
    "think": {"messages": [QUESTION, ANSWER | {"content": "<think>\nR1\n</think>\n\nA1"}, SECOND, LAST | {"content": "<think>\nR2\n</think>\n\nA2"}]},
}
NOT_RENDERED = "the model's chat template does not render"
NO_PREFIX = "does not follow from what a server gives the model to begin with"
DEEPSEEK = ("deepseek_r1_distill", "deepseekv3")
# (probe, why) -> the templates that refuse it, and their variants for training. All others train it.
REFUSED = {
    ("tools", f"tool_calls: {NOT_RENDERED}"): (
        "cohere", "cohere2", "gemma", "gemma3", "idefics3", "lfm2", "llama3", "llava_next", "phi3", "phi3_5", "qwen2_5_vl", "smolvlm", *OWN,
    ),
    ("tools", f"tools: {NOT_RENDERED}"): DEEPSEEK,
    ("reasoning", f"reasoning_content: {NOT_RENDERED}"): (
        "cohere", "cohere2", *DEEPSEEK, "gemma", "gemma3", "gemma4", "gemma4_v2", "gemma4_v3", "gemma4_v4", "idefics3", "lfm2", "lfm2_v2", "llama3",
        "llama3_1", "llama3_2", "llava_next", "phi3", "phi3_5", "qwen2_5", "qwen2_5_vl", "qwen3_instruct_2507", "qwen3_vl", "smolvlm", *OWN,
    ),
    # Their prompts begin the model's reasoning, and their answers without any are rendered otherwise.
    ("turns", NO_PREFIX): DEEPSEEK,
    ("system", NO_PREFIX): DEEPSEEK,
    ("system", "System role not supported"): ("gemma",),
    ("system", "roles have to alternate"): ("mistral",),
}  # fmt: skip


def of(table, name, otherwise=None):
    """What a table by beginnings of names has for a name: the longest beginning counts."""
    fitting = [key for key in table if name.startswith(key)]
    return table[max(fitting, key=len)] if fitting else otherwise


def trained(tokens, row):
    """The texts that are trained of a row, turn by turn, each with what stands before it in its sequence."""
    encoding = chat.Encoder(tokens, answers=True).encode(row)
    found = []
    for sequence in encoding.sequences:
        marks = [False, *sequence.trained, False]
        starts = [place for place in range(len(sequence.ids)) if marks[place + 1] and not marks[place]]
        ends = [place for place in range(1, len(sequence.ids) + 1) if marks[place] and not marks[place + 1]]
        found += [(tokens.decode(sequence.ids[:start]), tokens.decode(sequence.ids[start:end])) for start, end in zip(starts, ends, strict=True)]
    return found


def parts(message):
    """A message whose content is a list of parts, as some templates take it alone."""
    return message | {"content": [{"type": "text", "text": message["content"]}]}


def thought(message):
    """A message whose reasoning stands under a key of its own, as some templates take it alone."""
    before, _, after = message["content"].rpartition("</think>")
    return message | {"content": after.strip(), "reasoning_content": before.removeprefix("<think>").strip()}


def prompts(tokens, row, number):
    """What a server may give the model before a message: its prompt by default, and with reasoning turned on or off."""
    settings = [{}, *({name: value} for name in ("enable_thinking", "thinking") for value in (False, True))]
    found = []
    for form in (dict, parts, thought):
        messages = [form(message) for message in row["messages"][:number]]
        for choice in settings:
            try:
                found.append(tokens.apply_chat_template(messages, tools=row.get("tools"), add_generation_prompt=True, tokenize=False, **choice))
            except Exception:
                continue
    return found


@pytest.mark.parametrize("name", [*SHIPPED, *OWN])
def test_what_is_trained_under_a_shipped_template_is_the_answer_and_its_end_behind_a_servers_prompt(name):
    tokens = tokenizer((SHIPPED | OWN)[name])
    end, head = of(ENDS, name), of(HEADS, name, "")
    for probe, row in PROBES.items():
        given = copy.deepcopy(row)
        answers = [(number, message) for number, message in enumerate(row["messages"]) if message["role"] == "assistant"]
        try:
            found = trained(tokens, row)
        except RowError as error:
            assert expected_refusal(name, probe) and expected_refusal(name, probe) in str(error), (probe, str(error))
            continue
        assert expected_refusal(name, probe) is None, (probe, found)
        assert row == given, "the row itself was changed"
        assert len(found) == len(answers)
        for (before, text), (number, message) in zip(found, answers, strict=True):
            assert before in prompts(tokens, row, number), (probe, before)
            if "tool_calls" in message:
                assert text.endswith(of(CALL_ENDS, name, end)), (probe, text)
                assert "find_river" in text and "north" in text
            elif probe in ("turns", "system") or not (message.get("reasoning_content") or "<think>" in message["content"]):
                assert text.removeprefix("<|turn>model\n") == head + message["content"] + end, (probe, text)
            else:
                reasoning = f"R{message['content'][-1]}"
                assert text.endswith(message["content"].rpartition(">")[2].strip() + end), (probe, text)
                assert text.count(reasoning) == 1 and text.index(reasoning) < text.index(end), (probe, text)


def expected_refusal(name, probe):
    """Why a template refuses a probe, by the table above."""
    return next((why for (other, why), names in REFUSED.items() if other == probe and name.removesuffix("_training") in names), None)


def test_the_table_of_refusals_names_templates_that_there_are():
    assert {name for names in REFUSED.values() for name in names} <= {*SHIPPED, *OWN}


TURN_ENDS = {name: of(ENDS, name) for name in ("llama3_1", "gemma", "phi3", "gptoss", "cohere2", "glm4moe", "deepseek_r1_distill")}


@pytest.mark.parametrize("name", TURN_ENDS)
def test_the_end_of_turn_of_a_shipped_template_is_known(name):
    tokens = tokenizer(SHIPPED[name])
    assert "".join(tokens.convert_ids_to_tokens(chat.end_of_turn(tokens))) == TURN_ENDS[name]


@pytest.mark.parametrize("source", [MISTRAL, ZEPHYR, VICUNA])
def test_the_end_token_ends_a_turn_where_the_template_writes_it(source):
    tokens = tokenizer(source)
    assert chat.end_of_turn(tokens) == [tokens.eos_token_id]


@pytest.mark.parametrize("name", ["gemma", "llama3_1", "phi3"])
def test_an_end_of_turn_that_is_no_token_is_trained_as_the_text_that_it_is(name):
    tokens = tokenizer(SHIPPED[name], tokens=False)
    end = tokens.decode(chat.end_of_turn(tokens))
    assert end.startswith(of(ENDS, name))
    assert [text for _, text in trained(tokens, PROBES["turns"])] == ["A1" + end, "A2" + end]


def test_a_template_that_begins_the_next_turn_unasked_ends_the_turn_where_the_end_token_stands():
    source = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}{{ '<|im_start|>assistant\n' }}"
    tokens = tokenizer(source, eos_token="<|im_end|>")
    assert tokens.decode(chat.end_of_turn(tokens)) == "<|im_end|>"
    assert [text for _, text in trained(tokens, PROBES["turns"])] == ["A1<|im_end|>", "A2<|im_end|>"]


ENDLESS = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"


@pytest.mark.parametrize("source", [None, ENDLESS, "{{ raise_exception('no') }}"])
def test_a_template_that_ends_no_turn_has_no_end(source):
    tokens = make_tokenizer()
    tokens.chat_template = source
    assert chat.end_of_turn(tokens) == []


def test_a_template_that_ends_no_turn_is_refused_for_loss_on_answers_and_not_for_loss_on_everything():
    tokens = make_tokenizer()
    tokens.chat_template = ENDLESS
    with pytest.raises(StageError, match="writes nothing after an assistant's answer") as error:
        chat.Encoder(tokens, answers=True).check_template()
    assert error.value.reason == "UnsupportedTemplate"
    chat.Encoder(tokens, answers=False).check_template()


def test_a_template_that_is_none_is_the_models_fault_and_not_a_rows():
    tokens = make_tokenizer()
    tokens.chat_template = "{% for m in messages %}{{ m.content }"
    with pytest.raises(StageError, match="the model's chat template is not a valid one") as error:
        chat.Encoder(tokens, answers=True).check_template()
    assert error.value.reason == "UnsupportedTemplate"


# A template that marks the assistant's tokens itself: what stands between the marks is given.
MARKED = (
    "{%% for m in messages %%}{%% if m.role == 'assistant' %%}%s{%% else %%}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{%% endif %%}{%% endfor %%}{%% if add_generation_prompt %%}{{ '<|im_start|>assistant\n' }}{%% endif %%}"
)
HEAD, BODY, END = "{{ '<|im_start|>assistant\n' }}", "{{ m.content }}", "{{ '<|im_end|>' }}"
BEGIN_MARK, END_MARK = "{% generation %}", "{% endgeneration %}"


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        (HEAD + BEGIN_MARK + BODY + END + END_MARK + "{{ '\n' }}", "A1<|im_end|>"),
        # C3: marks that leave out the end of turn would never teach a model to stop.
        (HEAD + BEGIN_MARK + BODY + END_MARK + END + "{{ '\n' }}", "A1<|im_end|>"),
        # C4: marks that hold what a server gives, or what follows the end.
        (BEGIN_MARK + HEAD + BODY + END + "{{ '\n' }}" + END_MARK, "A1<|im_end|>"),
        # Marks that leave out a part of the answer mean it.
        (HEAD + "{{ m.content[:1] }}" + BEGIN_MARK + "{{ m.content[1:] }}" + END + END_MARK + "{{ '\n' }}", "1<|im_end|>"),
        (BEGIN_MARK + END_MARK + HEAD + BODY + END + "{{ '\n' }}", "A1<|im_end|>"),
    ],
)
def test_a_templates_own_marks_count_where_they_hold_the_end_of_turn_and_never_more_than_the_answer(turn, expected):
    tokens = tokenizer(MARKED % turn, eos_token="<|im_end|>")
    assert [text for _, text in trained(tokens, {"messages": [QUESTION, ANSWER, SECOND, ANSWER]})] == [expected] * 2


def test_templates_by_name_are_taken_as_a_server_takes_them():
    tokens = tokenizer(SHIPPED["qwen2_5"])
    tokens.chat_template = {"default": SHIPPED["llama3"], "tool_use": SHIPPED["qwen2_5"]}
    tokens.add_special_tokens({"additional_special_tokens": ["<|eot_id|>"]})
    assert [text for _, text in trained(tokens, PROBES["turns"])] == ["A1<|eot_id|>", "A2<|eot_id|>"]
    assert [text for _, text in trained(tokens, PROBES["tools"])][1] == "A2<|im_end|>"
    assert tokens.decode(chat.end_of_turn(tokens)) == "<|eot_id|>"
    tokens.chat_template = {"rag": SHIPPED["llama3"]}
    with pytest.raises(StageError, match="by the names rag, and none by the name default"):
        trained(tokens, PROBES["turns"])


def test_the_question_before_the_last_answer_is_a_servers_prompt_with_its_tools():
    tokens = tokenizer(SHIPPED["qwen2_5"])
    encoder = chat.Encoder(tokens, answers=True)
    row = PROBES["tools"]
    served = tokens.apply_chat_template(row["messages"][:3], tools=TOOLS, add_generation_prompt=True, return_dict=False)
    assert encoder.question(row) == served
    assert encoder.question({"messages": [ANSWER]}) is None
    assert encoder.question({"text": "red"}) is None


def test_templates_by_name_go_with_the_artefacts(tmp_path):
    from transformers import AutoTokenizer

    from tunesmith_trainer.finalize import copy_tokenizer

    tokens = make_tokenizer()
    tokens.chat_template = {"default": SHIPPED["llama3"], "tool_use": SHIPPED["qwen2_5"]}
    tokens.save_pretrained(tmp_path / "base")
    (tmp_path / "merged").mkdir()
    copy_tokenizer(tmp_path / "base", tmp_path / "merged")
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template == tokens.chat_template


def test_a_template_that_strips_earlier_turns_gives_each_answer_a_sequence_as_a_server_would_meet_it():
    tokens = tokenizer(SHIPPED["qwen3"])
    encoding = chat.Encoder(tokens, answers=True).encode(PROBES["think"])
    whole = [tokens.decode(sequence.ids) for sequence in encoding.sequences]
    assert [text.count("<think>") for text in whole] == [1, 1]
    assert whole[1].index("A1") < whole[1].index("<think>")
    assert [text for _, text in trained(tokens, PROBES["think"])] == [f"<think>\nR{n}\n</think>\n\nA{n}<|im_end|>" for n in (1, 2)]
    assert (encoding.stripped, encoding.switch) == (False, None)


def test_calls_of_tools_and_their_answer_stay_in_one_sequence_where_the_template_keeps_them_so():
    tokens = tokenizer(SHIPPED["qwen3_instruct_2507"])
    assert len(chat.Encoder(tokens, answers=True).encode(PROBES["tools"]).sequences) == 1


def test_an_answer_without_reasoning_is_trained_as_a_server_gives_it_with_reasoning_off_and_the_setting_is_reported():
    tokens = tokenizer(SHIPPED["qwen3"])
    encoding = chat.Encoder(tokens, answers=True).encode(PROBES["turns"])
    assert encoding.switch == "enable_thinking=false"
    assert all(before.endswith("<think>\n\n</think>\n\n") for before, _ in trained(tokens, PROBES["turns"]))
    # A row that says itself that reasoning is on means the empty block to be learnt.
    asked = PROBES["turns"] | {"chat_template_kwargs": {"enable_thinking": True}}
    assert [text for _, text in trained(tokens, asked)] == [f"<think>\n\n</think>\n\nA{n}<|im_end|>" for n in (1, 2)]
    assert chat.Encoder(tokens, answers=True).encode(asked).switch is None


@pytest.mark.parametrize("name", ["deepseek_r1_distill", "qwen3", "qwen3_5_think"])
def test_template_strips_and_loss_on_everything_says_which_rows_lose_text(name):
    tokens = tokenizer(SHIPPED[name])
    everything = chat.Encoder(tokens, answers=False)
    assert everything.encode(PROBES["think"]).stripped
    assert not everything.encode(PROBES["turns"]).stripped


REFUSES_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system messages here') }}{% endif %}"
REFUSES_SYSTEM += MARKED % (HEAD + BODY + END + "{{ '\n' }}")


@pytest.mark.parametrize("answers", [True, False])
def test_template_refuses_row_only_where_the_row_is_one_that_it_refuses(answers):
    encoder = chat.Encoder(tokenizer(REFUSES_SYSTEM, eos_token="<|im_end|>"), answers)
    assert encoder.encode(PROBES["turns"]).sequences
    with pytest.raises(RowError, match="no system messages here"):
        encoder.encode(PROBES["system"])


def test_a_template_that_needs_a_system_message_trains_rows_that_have_one():
    source = REFUSES_SYSTEM.replace("messages[0].role == 'system'", "messages[0].role != 'system'")
    tokens = tokenizer(source, eos_token="<|im_end|>")
    assert [text for _, text in trained(tokens, PROBES["system"])] == ["A1<|im_end|>"]


@pytest.mark.parametrize("stop", ["<|im_end|>", "</s>"])
def test_an_answer_that_holds_the_end_of_its_turn_is_refused(stop):
    tokens = tokenizer(SHIPPED["qwen2_5"])
    with pytest.raises(RowError, match=rf"messages\[1\] holds '{stop[:2]}.*, by which the model's turn ends".replace("|", r"\|")):
        trained(tokens, {"messages": [QUESTION, ANSWER | {"content": f"A1{stop}"}]})
    assert trained(tokens, {"messages": [QUESTION | {"content": f"what is {stop}"}, ANSWER]})


def test_arguments_of_calls_are_rendered_alike_whether_they_are_a_text_or_a_map():
    tokens = tokenizer(SHIPPED["qwen2_5"])
    written = copy.deepcopy(PROBES["tools"])
    written["messages"][1]["tool_calls"][0]["function"]["arguments"] = json.dumps(CALL["function"]["arguments"])
    assert trained(tokens, written) == trained(tokens, PROBES["tools"])
    assert '"arguments": {"where": "north"}' in trained(tokens, written)[0][1]
