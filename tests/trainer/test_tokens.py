"""Where a prompt ends and an answer begins in tokens: as a server meets it, for byte-level tokenizers and those in the style of SentencePiece."""

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from dev.rows import WORDS
from tests.trainer.bench import CHATML, make_tokenizer
from tests.trainer.templates import MISTRAL, VICUNA, tokenizer
from tunesmith_trainer.data.chat import Encoder
from tunesmith_trainer.data.tokens import Words
from tunesmith_trainer.errors import RowError

SPACE = "\u2581"  # SentencePiece's space
STYLES = {
    # Llama 2: a space before each text, by the normalizer.
    "prepend": {"normalizer": normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])},
    # Mistral and Llama 2 as transformers writes them now: a space before the first text.
    "first": {"pre_tokenizer": pre_tokenizers.Metaspace(SPACE, prepend_scheme="first", split=False)},
    "always": {"pre_tokenizer": pre_tokenizers.Metaspace(SPACE, prepend_scheme="always")},
    # Gemma: no space but those that are written.
    "none": {"normalizer": normalizers.Replace(" ", SPACE)},
}


def sentencepiece(style, template=None):
    """A BPE tokenizer with byte fallback in one of SentencePiece's ways with spaces, trained on a little text."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="always")
    special = ["<unk>", "<s>", "</s>", *(f"<0x{number:02X}>" for number in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=special, show_progress=False)
    made.train_from_iterator([" ".join(WORDS) + " [INST] [/INST] USER: ASSISTANT: Q: A:\n" + "".join(WORDS)] * 10, trainer)
    made.pre_tokenizer = None
    for part, value in STYLES[style].items():
        setattr(made, part, value)
    strip = [] if style == "none" else [decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.chat_template = template
    return fast


def parts(encoded):
    """A sequence's tokens before the first one that is trained, and those that are trained."""
    start = encoded.trained.index(True)
    return encoded.ids[:start], [token for token, trained in zip(encoded.ids, encoded.trained, strict=True) if trained]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    ("prompt", "completion"),
    [("Q: red A:", "blue dog"), ("Q: red A:", " blue dog"), ("Q: red A: ", "blue"), ("Q: red\n", "blue"), ("red", "\n  x y")],
)
def test_a_completion_is_trained_as_the_tokens_that_read_as_it_behind_its_prompt(style, prompt, completion):
    tokens = sentencepiece(style)
    (sequence,) = Encoder(tokens, answers=False).encode({"prompt": prompt, "completion": completion}).sequences
    before, trained = parts(sequence)
    assert before == tokens(prompt)["input_ids"], "a server encodes the prompt by itself"
    assert trained[-1] == tokens.eos_token_id
    assert tokens.decode([*before, *trained[:-1]]).endswith(prompt + completion)


def test_byte_level_completions_are_encoded_apart_as_they_were():
    tokens = make_tokenizer()
    (sequence,) = Encoder(tokens, answers=False).encode({"prompt": "red", "completion": " cat"}).sequences
    assert parts(sequence) == (tokens("red")["input_ids"], [*tokens(" cat")["input_ids"], tokens.eos_token_id])


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("template", [MISTRAL, VICUNA, CHATML])
def test_each_answer_stands_behind_the_tokens_of_a_servers_prompt(style, template):
    tokens = sentencepiece(style, template)
    messages = [
        {"role": role, "content": content} for role, content in (("user", "red dog"), ("assistant", "blue"), ("user", "cat"), ("assistant", "old  x"))
    ]
    encoded = Encoder(tokens, answers=True).encode({"messages": messages}).sequences
    found = []
    for sequence in encoded:
        marks = [False, *sequence.trained]
        found += [sequence.ids[:place] for place in range(len(sequence.ids)) if marks[place + 1] and not marks[place]]
    served = [tokens.apply_chat_template(messages[:count], add_generation_prompt=True, return_dict=False) for count in (1, 3)]
    assert found == served


def test_letters_that_a_tokenizer_does_not_know_are_no_reason_to_refuse_a_completion():
    tokens = sentencepiece("prepend")
    tokens.backend_tokenizer.model.byte_fallback = False
    (sequence,) = Encoder(tokens, answers=False).encode({"prompt": "Q: red A:", "completion": "\u732b dog"}).sequences
    assert tokens.decode(parts(sequence)[1]) == tokens.decode(tokens("\u732b dog</s>", add_special_tokens=False)["input_ids"])


def merging(*pairs):
    """The byte-level tokenizer with a ChatML template and merges across what a template writes and what a row says."""
    import json

    tokens = make_tokenizer()
    state = json.loads(tokens.backend_tokenizer.to_str())
    for one, other in pairs:
        state["model"]["vocab"][one + other] = len(state["model"]["vocab"]) + 1000
        state["model"]["merges"].insert(0, [one, other])
    state["pre_tokenizer"]["use_regex"] = False
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), eos_token="<|im_end|>", pad_token="<|endoftext|>")
    made.chat_template = CHATML
    return made


def test_an_answer_whose_first_letter_would_melt_into_the_prompt_is_encoded_as_a_server_meets_it():
    tokens = merging(("\u010a", "\u010a"))  # two line breaks are one token, as in most vocabularies
    question, answer = {"role": "user", "content": "red"}, {"role": "assistant", "content": "\ncat"}
    assert "\u010a\u010a" in tokens.tokenize(tokens.apply_chat_template([question, answer], tokenize=False))
    encoding = Encoder(tokens, answers=True).encode({"messages": [question, answer, question, answer | {"content": "dog"}]})
    found = []
    for sequence in encoding.sequences:
        before, trained = parts(sequence)
        found.append((before, tokens.decode(trained)))
    prompts = [
        tokens.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) for messages in ([question], [question, answer, question])
    ]
    assert sorted(found, key=lambda pair: len(pair[0])) == [(prompts[0], "\ncat<|im_end|>"), (prompts[1], "dog<|im_end|>")]


def test_a_text_that_begins_with_its_begin_token_gets_no_second_one():
    tokens = sentencepiece("first")
    plain, begun = (Encoder(tokens, answers=False).encode({"text": text}).sequences[0].ids for text in ("red dog", "<s>red dog"))
    assert (plain.count(tokens.bos_token_id), begun.count(tokens.bos_token_id)) == (1, 1)
    assert Words(tokens).document("<s>[INST] red [/INST]").count(tokens.bos_token_id) == 1


def test_a_text_that_ends_with_its_end_token_gets_no_second_one():
    tokens = make_tokenizer()
    encoder = Encoder(tokens, answers=False)
    assert encoder.encode({"text": "red<|im_end|>"}) == encoder.encode({"text": "red"})
    assert encoder.encode({"prompt": "red", "completion": "cat<|im_end|>"}) == encoder.encode({"prompt": "red", "completion": "cat"})


def test_a_tokenizer_that_ends_every_prompt_is_refused_for_completions_and_not_for_conversations():
    tokens = sentencepiece("first", MISTRAL)
    tokens.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    with pytest.raises(RowError, match="set add_eos_token to false"):
        Encoder(tokens, answers=False).encode({"prompt": "red", "completion": "cat"})
    row = {"messages": [{"role": "user", "content": "red"}, {"role": "assistant", "content": "cat"}]}
    assert Encoder(tokens, answers=True).encode(row).sequences
    assert Encoder(tokens, answers=False).encode({"text": "red"}).sequences[0].ids.count(tokens.eos_token_id) == 1


def test_what_a_tokenizer_cannot_encode_is_the_rows_fault():
    with pytest.raises(RowError, match="cannot encode this row"):
        Encoder(tokenizer(CHATML), answers=False).encode({"text": "half a letter: \ud800"})
