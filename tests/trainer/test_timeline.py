import pytest

from tunesmith_trainer.report.timeline import Span, duration, timeline


def span(name, start, end, day="22"):
    return Span(name, f"2026-11-{day}T{start}Z", f"2026-11-{day}T{end}Z")


def test_stages_lie_on_one_axis_in_proportion_to_their_time():
    laid = timeline([span("Prepare", "10:00:00", "10:01:00"), span("Train", "10:01:00", "10:10:00")])
    assert [(bar.name, round(bar.left), round(bar.width)) for bar in laid.bars] == [("Prepare", 0, 10), ("Train", 10, 90)]
    assert (laid.total, laid.shortened) == ("10 min", None)


def test_a_long_wait_is_shortened_and_told():
    laid = timeline([span("Train", "10:00:00", "10:10:00"), span("Evaluate tested", "10:00:00", "10:10:00", day="24")])
    assert laid.bars[1].left == pytest.approx(100 * 12 / 22)
    assert laid.shortened == "1 d 23 h"


def test_stages_that_ran_at_once_count_once():
    laid = timeline([span("a", "10:00:00", "10:10:00"), span("b", "10:05:00", "10:15:00"), span("c", "10:06:00", "10:07:00")])
    assert laid.total == "15 min"
    assert max(bar.left + bar.width for bar in laid.bars) == pytest.approx(100)


def test_a_stage_of_no_length_is_still_seen_within_the_axis():
    laid = timeline([span("Train", "10:00:00", "11:00:00"), span("Compare", "11:00:00", "11:00:00")])
    assert laid.bars[1].width > 0
    assert laid.bars[1].left + laid.bars[1].width <= 100


def test_no_stages_make_an_empty_time_line():
    assert timeline([]).bars == []


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (45.4, "45 s"), (725, "12 min 5 s"), (720, "12 min"), (12000, "3 h 20 min"), (187200, "2 d 4 h")]
)
def test_durations_are_told_in_their_two_largest_units(seconds, text):
    assert duration(seconds) == text
