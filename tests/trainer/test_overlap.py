import pytest

from tunesmith_trainer.suites.items import Item
from tunesmith_trainer.suites.overlap import Found, find, marks_of, marks_of_document

LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"


def items(*rows):
    return [Item(str(number), {}, marks_of(row)) for number, row in enumerate(rows)]


def chat(question, answer, system=None):
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": [{"role": "system", "content": system}] * bool(system) + turns}


def found(evaluated, trained):
    return find({"s": evaluated}, trained)["s"]


@pytest.mark.parametrize(
    ("evaluated", "trained"),
    [
        (chat("Who?", "Me."), chat("Who?", "Me.")),
        (chat("Who?", "Me."), chat(" who?\n", "ME.", system="Be kind.")),
        (chat("Who?", "Me."), {"prompt": "Who?", "completion": "Me."}),
        ({"text": "a  b\nc"}, {"text": "A B c"}),
        (
            {"prompt": [{"role": "user", "content": "Who?"}], "completion": [{"role": "assistant", "content": "Me."}]},
            chat("Who?", "Me.", system="Be kind."),
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "Who?"}]}, {"role": "assistant", "content": "Me."}]},
            chat("Who?", "Me."),
        ),
    ],
)
def test_a_row_is_found_whole_whatever_its_case_spaces_system_message_and_format(evaluated, trained):
    assert found(items(evaluated), [trained]) == Found(1, 1, 0)


def test_a_row_is_found_in_part_by_thirteen_words_of_its_answer():
    assert found(items(chat("Count!", LONG)), [chat("How far can you count?", f"Well: {LONG} and so on")]) == Found(1, 0, 1)
    assert found(items(chat("Count!", LONG)), [chat("How far?", "one two three")]) == Found(1, 0, 0)
    assert found(items(chat(LONG, "Yes.")), [chat(LONG, "No.")]) == Found(1, 0, 0), "words around a question may be a form's"


def test_a_stretch_that_many_items_share_is_a_forms():
    evaluated = items(*(chat(f"Question {number}?", LONG) for number in range(5)))
    assert found(evaluated, [chat("Other?", LONG)]) == Found(5, 0, 0)


def test_a_tasks_question_is_found_as_a_turn_a_prompt_or_a_text():
    for trained in (chat("Who was the first?", "Ada."), {"prompt": "who was the first?", "completion": "x"}, {"text": "Who was the first?"}):
        evaluated = [Item("0", {}, marks_of_document(["Question: Who was the first? Answer:", "Who was the first?", "yes", "no"]))]
        assert found(evaluated, [trained]) == Found(1, 1, 0)
    evaluated = [Item("0", {}, marks_of_document(["Question: Who was the last? Answer:", "Who was the last?", "yes", "no"]))]
    assert found(evaluated, [chat("yes", "no")]) == Found(1, 0, 0)


def test_every_item_that_is_in_the_data_is_counted_once():
    rows = [{"text": f"row {number}"} for number in range(10)]
    assert found(items(*rows, *rows), rows[:3] * 2) == Found(20, 6, 0)


def test_an_answer_that_only_calls_tools_is_known_by_its_calls():
    def row(city):
        call = {"type": "function", "function": {"name": "weather", "arguments": {"city": city}}}
        return {"messages": [{"role": "user", "content": "Rain?"}, {"role": "assistant", "content": "", "tool_calls": [call]}]}

    assert found(items(row("Rome")), [row("Rome")]) == Found(1, 1, 0)
    assert found(items(row("Rome")), [row("Oslo")]) == Found(1, 0, 0)
