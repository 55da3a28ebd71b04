"""Which rank hangs, from what the ranks say that they do. The clock is a number."""

from __future__ import annotations

import math

import pytest

from utils.ranks.activity import DRAWS, WAITS, WORKS, Activity, Doing
from utils.ranks.stalls import Stalls

HOSTS = ("node1", "node1", "node2", "node2")
ALL = frozenset(range(4))
IN_STEP = Doing(7, WORKS, "step 512", 0.0)


def lines(
    stalls: Stalls, seconds: int, answer: frozenset[int] = ALL, doing: dict[int, Doing] | None = None
) -> list[tuple[int, str]]:
    """Return what is said, and when, while the ranks say each second what they do. Without `doing` they go on."""
    said = []
    start = int(max(stalls.heard.values(), default=-1)) + 1
    for now in range(start, start + seconds):
        for rank in answer:
            went_on = IN_STEP._replace(place=now, since=float(now))
            stalls.hear(rank, went_on if doing is None else doing.get(rank, IN_STEP), float(now))
        line = stalls.notice(float(now))
        if line:
            said.append((now, line))
    return said


def test_ranks_that_do_not_answer_are_named_after_a_minute_and_ever_more_seldom():
    stalls = Stalls(HOSTS, 1800.0)
    assert lines(stalls, 100) == []
    said = lines(stalls, 500, ALL - {2, 3}, {})
    assert [now - 99 for now, _ in said] == [60, 120, 240, 480]
    assert said[0][1] == (
        "warning: ranks 2, 3 on node2 have not answered for 60 s, last in: step 512. After 30 min of that the run ends "
        "(--stall_limit)"
    )
    assert [line for _, line in lines(stalls, 100)] == ["the ranks go on after 500 s"]
    assert [now % 100 for now, _ in lines(stalls, 100, ALL - {1})] == [59]  # as soon as before


def test_a_rank_that_does_not_answer_is_named_sooner_when_the_run_is_to_stop():
    stalls = Stalls(HOSTS, math.inf)
    lines(stalls, 100)
    assert lines(stalls, 30, ALL - {2}, {}) == []
    stalls.stops = True
    assert [now - 99 for now, _ in lines(stalls, 100, ALL - {2}, {})] == [31, 62, 124]
    stalls = Stalls(HOSTS, math.inf)
    stalls.stops = True
    draws = {2: IN_STEP._replace(place=6, order=DRAWS)}
    assert [now for now, _ in lines(stalls, 100, ALL, draws)] == [
        60
    ]  # it answers: rank 0 may write for a while


def test_a_rank_that_the_others_wait_for_is_named_with_what_it_is_in():
    stalls = Stalls(HOSTS, math.inf)
    draws = Doing(6, DRAWS, "waiting for patches", -15.0)
    ((now, line),) = lines(stalls, 100, ALL, {2: draws})
    assert (now, line) == (
        60,
        "warning: rank 2 on node2 has been in: waiting for patches, for 75 s; the others wait",
    )


def test_a_rank_that_waits_for_others_in_the_same_activity_is_not_the_cause():
    stalls = Stalls(HOSTS, math.inf)
    checks = Doing(1, WORKS, "checking the slides", 0.0)
    waiting = checks._replace(order=WAITS)
    ((_, line),) = lines(stalls, 100, ALL, {0: checks, 1: waiting, 2: waiting, 3: checks})
    assert "ranks 0 on node1 and 3 on node2 have been in: checking the slides" in line
    assert lines(Stalls(HOSTS, math.inf), 299, ALL, dict.fromkeys(ALL, checks)) == []


def test_what_takes_long_again_and_again_is_said_once():
    stalls = Stalls(HOSTS, math.inf)
    stalls.trains = True
    slow = {2: Doing(6, DRAWS, "waiting for patches", 0.0)}
    assert len(lines(stalls, 80, ALL, slow)) == 1
    assert [line for _, line in lines(stalls, 5)] == ["the ranks go on after 79 s"]
    slow = {rank: Doing(99, WORKS + (rank > 0), "validating", 84.0) for rank in ALL}
    assert lines(stalls, 150, ALL, slow) == []
    assert len(lines(stalls, 20, ALL, slow)) == 1  # twice as long as before


def test_the_run_ends_when_the_limit_is_reached_but_not_for_ranks_that_answer_before_the_training():
    stalls = Stalls(HOSTS, 600.0)
    behind = {2: Doing(1, WORKS, "checking the slides", 0.0)}
    lines(stalls, 700, ALL, behind)
    assert not stalls.reason_to_end(699.0)
    stalls.trains = True
    assert "rank 2 on node2 has been in: checking the slides" in stalls.reason_to_end(699.0)
    stalls.trains = False
    lines(stalls, 600, ALL - {1}, behind)
    assert not stalls.reason_to_end(1298.0)
    assert "rank 1 on node1 has not answered for 600 s" in stalls.reason_to_end(1299.0)
    assert not Stalls(HOSTS, math.inf).reason_to_end(1e9)


def test_a_process_that_was_stopped_itself_blames_nobody():
    stalls = Stalls(HOSTS, 600.0)
    stalls.trains = True
    lines(stalls, 50, ALL, {})
    stalls.skip(1000.0)
    assert not stalls.notice(1050.0)
    assert not stalls.reason_to_end(1050.0)


def test_a_rank_goes_on_when_it_says_anew_what_it_does_but_not_when_its_message_was_slow():
    stalls = Stalls(HOSTS, math.inf)
    for now, since, quiet in ((10.0, 0.0, 10.0), (20.0, 0.4, 20.0), (30.0, -0.4, 30.0), (40.0, 38.0, 2.0)):
        stalls.hear(0, IN_STEP._replace(since=since), now)
        assert stalls.quiet(now) == quiet


@pytest.mark.parametrize(
    ("name", "order", "what"), [("waiting", WAITS, "step 1"), ("drawing", DRAWS, "wait")]
)
def test_an_activity_within_another_one_leads_back_to_it(name, order, what):
    activity = Activity()
    activity.begin("step 1")
    before = activity.now
    with getattr(activity, name)():
        assert (activity.now.place, activity.now.order) == (1, order)
        assert activity.now.what.startswith(what)
    assert activity.now[:3] == before[:3]
    assert activity.now.since > before.since
    with pytest.raises(StopIteration), getattr(activity, name)():
        next(iter(()))  # as an iterator does that has come to its end
    assert activity.now[:3] == before[:3]
