"""A backup brings back objects without their status, under other uids: their stages find what was made, and make nothing again."""

import json

import pytest

from tests.trainer import bench
from tests.trainer.models import VARIANTS, quantize_input

UID = "made-anew"
OWN = ("attempt", "startTime", "completionTime")
"""What an answer tells of the stage that answers, not of what was made."""


def made_anew(value):
    """The same stage, asked for by an object of the same name that was made anew."""
    return value | {"attempt": 1, "object": value["object"] | {"uid": UID}}


def files(folder):
    """Size and time of each file of a run."""
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def made(result):
    return {name: value for name, value in result.items() if name not in OWN}


@pytest.fixture(scope="module")
def finished(story, finalized, zygote):
    """The stage files of a run that has finished, variant included, each with what it told."""
    merged = finalized[1]["artifacts"][1]
    variant = quantize_input("w8a8", VARIANTS["w8a8"], merged["uri"]) | {"model": {"uri": merged["uri"], "digest": merged["digest"]}}
    variant |= {"runURI": story.prepared["runURI"], "object": story.finalize["object"]}
    told = story.store.start(variant, **zygote).wait()
    assert told[0] == 0, told
    prepare = bench.prepare_input(training=story.train[1]["training"])
    return [(prepare, story.prepared), (story.train[1], story.ended[0][1]), (story.finalize, finalized[1]), (variant, told[1])]


def test_every_stage_of_an_object_made_anew_answers_with_what_the_first_one_made(story, finished, zygote):
    before = files(story.folder)
    for value, told in finished:
        code, result = story.store.start(made_anew(value), **zygote).wait()
        assert (code, made(result)) == (0, made(told))
    after = files(story.folder)
    # Prepare is not told where the run lies, so it finds out anew; what it then finds there stays as it is.
    assert {name for name in before | after if before.get(name) != after.get(name)} == {"owner.json", "results/prepare.json"}
    assert json.loads((story.folder / "owner.json").read_text())["uid"] == UID


def test_each_pod_of_a_training_that_is_asked_for_again_answers_at_once(story, zygote):
    again = made_anew(story.train[1])
    pods = [story.store.start(again, index, **zygote) for index in (0, 1)]
    # None of them waits for the others, which may be on nodes that are yet to come.
    assert [pod.wait()[0] for pod in pods] == [0, 0]
    assert json.loads(pods[0].message.read_text()) == story.ended[0][1]


def test_a_run_whose_artefact_is_gone_is_finished_again_and_not_answered_for(story, finished, zygote):
    value, told = finished[2]
    merged = story.store.path(told["artifacts"][1]["uri"])
    (merged / "manifest.json").rename(merged / ".manifest-away")
    try:
        code, result = story.store.start(made_anew(value), **zygote).wait()
    finally:
        (merged / ".manifest-away").unlink(missing_ok=True)
    assert (code, result["artifacts"]) == (0, told["artifacts"])
    assert (merged / "manifest.json").exists()
