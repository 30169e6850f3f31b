"""The files of a dataset: which are read, which are refused, and in which words."""

import gzip
import json

import pytest

from tests.trainer.bench import make_tokenizer
from tunesmith_contract.data import Preparation
from tunesmith_trainer.data import dataset, files
from tunesmith_trainer.data.chat import Encoder
from tunesmith_trainer.errors import StageError


def pair(number, where="a"):
    """A row."""
    return {"messages": [{"role": "user", "content": f"{where} {number}"}, {"role": "assistant", "content": "dog"}]}


def lines(count, where="a"):
    """Rows as the lines of a file."""
    return "".join(json.dumps(pair(number, where)) + "\n" for number in range(count)).encode()


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Writes files below `pvc://data` and loads what is there."""
    monkeypatch.setenv("TUNESMITH_PVC_ROOT", str(tmp_path))

    class Data:
        def write(self, name, content):
            path = tmp_path / "data" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            return self

        def load(self, name, data_format="Messages"):
            rule = dataset.Filter(Preparation(), Encoder(make_tokenizer(), answers=data_format == "Messages"), dataset.Cut(256))
            return dataset.load(dataset.Source("chat", f"pvc://data/{name}", data_format), rule)

        def refused(self, name, data_format="Messages"):
            with pytest.raises(StageError) as error:
                self.load(name, data_format)
            assert error.value.reason == "InvalidDataset"
            return error.value.message

    return Data()


def test_folder_of_files_which_were_read_is_known_with_their_rows(data):
    for number, name in enumerate(("part-0.jsonl", "part-1.JSONL", "more/part-2.ndjson", "part-3.json", "part-4.jsonlines"), start=1):
        data.write(f"set/{name}", lines(number))
    loaded = data.write("set/README.md", b"# rows").write("set/LICENSE.txt", b"x").write("set/dataset_infos.json", b"{\n}").load("set")
    assert loaded.source.files == {"more/part-2.ndjson": 3, "part-0.jsonl": 1, "part-1.JSONL": 2, "part-3.json": 4, "part-4.jsonlines": 5}
    assert len(loaded.rows) == 15


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("part-1.jsonl.gz", gzip.compress(lines(5), mtime=0)),
        ("part-1.jsonl.zst", b"x"),
        ("part-1.parquet", b"PAR1....PAR1"),
        ("PART.PARQUET", b"PAR1....PAR1"),
        ("part-1.arrow", b"ARROW1"),
        ("part-1.csv", b"a,b"),
        ("part-1.tsv", b"a\tb"),
        ("more.txt", b"a text"),
        ("more.xml", b"<a/>"),
        ("rows.jsonl.bak", lines(5)),
        ("part-00000", lines(5)),
        ("shard.0", b"[1]"),
        ("shard.1", gzip.compress(lines(5), mtime=0)),
    ],
)
def test_folder_of_files_what_looks_like_data_and_is_not_read_is_refused_by_name(data, name, content):
    assert f"files that look like data and are not read: {name}." in data.write("set/part-0.jsonl", lines(5)).write(f"set/{name}", content).refused(
        "set"
    )


@pytest.mark.parametrize("name", ["script.py", "notes.md", "run.sh", ".gitattributes", "picture.png", "_SUCCESS", "CITATION.cff", "analysis.ipynb"])
def test_folder_of_files_what_is_no_data_stands_in_no_ones_way(data, name):
    assert data.write("set/part-0.jsonl", lines(5)).write(f"set/{name}", b"" if name == "_SUCCESS" else b"x").load("set").source.files == {
        "part-0.jsonl": 5
    }


@pytest.mark.parametrize(
    ("train", "other"),
    [
        ("train.jsonl", "test.jsonl"),
        ("train.jsonl", "validation.jsonl"),
        ("rows.jsonl", "heldout.jsonl"),
        ("rows.jsonl", "held-out.jsonl"),
        ("train-00000-of-00002.jsonl", "test-00000-of-00001.jsonl"),
        ("data/train.jsonl", "data/dev.json"),
        ("train/part-0.jsonl", "valid/part-0.jsonl"),
        ("train/part-0.jsonl", "Eval/part-0.jsonl"),
        ("chat_train.jsonl", "chat_val.jsonl"),
        ("validation.jsonl", "test.jsonl"),
        ("rows.jsonl", "held_out.jsonl"),
        ("rows.jsonl", "hold-out.jsonl"),
        ("rows.jsonl", "testset.jsonl"),
        ("rows.jsonl", "test_data.jsonl"),
        ("rows.jsonl", "TestSet.jsonl"),
        ("rows.jsonl", "myTest.jsonl"),
        ("rows.jsonl", "testA.jsonl"),
        ("rows.jsonl", "devset.jsonl"),
        ("rows.jsonl", "development.jsonl"),
        ("rows.jsonl", "evalsets/part-0.jsonl"),
    ],
)
def test_folder_of_files_of_several_splits_is_refused(data, train, other):
    message = data.write(f"set/{train}", lines(2)).write(f"set/{other}", lines(1)).refused("set")
    assert "several splits" in message
    assert train in message
    assert other in message
    assert "Name the file or the folder of that split" in message


@pytest.mark.parametrize(
    "names",
    [
        ("train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"),
        ("test.jsonl",),
        ("contest.jsonl", "latest.jsonl", "attest/devices.jsonl", "latestValues.jsonl", "a.jsonl"),
    ],
)
def test_folder_of_files_of_one_split_is_read(data, names):
    for name in names:
        data.write(f"set/{name}", lines(2))
    assert len(data.load("set").rows) == 2 * len(names)


def test_a_folder_without_data_is_refused(data):
    assert "holds no .jsonl file" in data.write("set/notes.md", b"x").refused("set")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (gzip.compress(lines(2), mtime=0), "row 1: the file is a gzip file: unpack it"),
        (b"PAR1....PAR1", "row 1: the file is a Parquet file: write it as JSON Lines"),
        (b"PK\x03\x04....", "row 1: the file is a zip file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "row 1: the file is a pointer of Git LFS and not the data"),
        (b"[\n" + b",\n".join(lines(2).splitlines()) + b"\n]\n", "row 1: not JSON (one JSON object a line is expected; this file is one array)"),
        (json.dumps([pair(1)], indent=2).encode(), "row 1: not JSON (one JSON object a line is expected; this file is one array)"),
        (json.dumps([pair(1)]).encode(), "row 1: one JSON object a line is expected; this file is one array"),
        (json.dumps(pair(1), indent=2).encode(), "row 1: not JSON (one JSON object a line is expected; this object goes on in the next line"),
        (lines(1) + lines(1)[:40], "row 2: not JSON (one JSON object a line is expected; this object goes on in the next line, or is cut off)"),
        (b"a,b\n1,2\n", "row 1: not JSON (one JSON object a line is expected; this line is something else)"),
        (lines(2).decode().replace("\n", "\r\n").encode("utf-16"), "row 1: the file is in UTF-16: save it as UTF-8"),
        (lines(1).decode().encode("utf-16-le"), "row 1: the file is in UTF-16: save it as UTF-8"),
        (lines(1).decode().encode("utf-16-be"), "row 1: the file is in UTF-16: save it as UTF-8"),
        (lines(1).decode().encode("utf-32"), "row 1: the file is in UTF-32: save it as UTF-8"),
        (json.dumps(pair("caf\xe9"), ensure_ascii=False).encode("latin-1"), "row 1: the file is not in UTF-8 (byte 0xe9"),
        (lines(3) + b"\0" * 64, "row 4: NUL bytes: the file is damaged"),
        (lines(2).replace(b"\n", b"\r"), "row 1: not JSON (a single CR is no line break"),
        (lines(2).replace(b"\n", b"") + b"\n", "row 1: not JSON (more than one value on a line"),
        (lines(2).replace(b"\n", b",\n"), "row 1: not JSON (one JSON object a line is expected, without commas between them)"),
        (b'{"a": ' + b"[" * 20000 + b"]" * 20000 + b"}\n", "row 1: nested too deep"),
        (b'{"text": "one\ntwo"}\n', "row 1: not JSON (a text does not end on its line: write a line break in a text as \\n, or the line is cut off)"),
        (b'{"text": "one\ttwo"}\n', "row 1: not JSON (a text holds a control character, such as a tab, that has to be escaped, at column 14)"),
        (b'{"n": ' + b"1" * 5000 + b"}\n", "row 1: not JSON (a number has too many digits)"),
        (b'{"messages": [], "messages": []}\n', "row 1: an object has the key 'messages' twice"),
        (b'{"text": "a", "meta": {"x": 1, "x": 2}}\n', "row 1: an object has the key 'x' twice"),
        (
            b'{"messages": [{"role": "user", "content": "a \\ud800 b"}, {"role": "assistant", "content": "b"}]}\n',
            "row 1: a text holds half of a surrogate pair",
        ),
        (
            b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "tools": [{"limit": NaN}]}\n',
            "row 1: NaN, Infinity, or nested too deep",
        ),
    ],
)
def test_data_encodings_that_cannot_be_read_are_refused_in_plain_words_with_file_and_row(data, content, words):
    message = data.write("rows.jsonl", content).refused("rows.jsonl")
    assert message.startswith("dataset 'chat', file rows.jsonl, row ")
    assert words in message


def test_data_encodings_that_are_read_leave_the_rows_as_they_are(data):
    rows = [pair("blue\u2028river\u0085 stone"), pair("one\u2029two"), pair("\U0001f600 \xe9")]
    written = "\ufeff" + "\r\n\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\r\n\r\n   \r\n"
    assert data.write("rows.jsonl", written.encode()).load("rows.jsonl").rows == rows
    assert data.write("rows.jsonl", written.strip().encode()).load("rows.jsonl").rows == rows
    joined = "".join("\ufeff" + json.dumps(row) + "\n" for row in rows)
    assert data.write("rows.jsonl", joined.encode()).load("rows.jsonl").rows == rows


def test_the_splits_of_a_hub_are_known_by_the_names_that_the_library_datasets_has_for_them():
    from datasets.data_files import SPLIT_KEYWORDS

    for split, words in SPLIT_KEYWORDS.items():
        assert {files.split_of(f"{word}-00000-of-00001.jsonl") for word in words} == {str(split)}
