"""Ranks that hear each other over the loopback, in one process: what they do and what ends them."""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from utils.cli import EXIT_STALLED
from utils.ranks import heartbeat, stalls
from utils.ranks.heartbeat import Heartbeat
from utils.ranks.single import Ranks

HOSTS = ("node1", "node1", "node2")


@dataclass(frozen=True)
class OneOfThree(Ranks):
    """A rank that has what rank 0 broadcasts from a dictionary that the ranks of a test share."""

    size: int = 3
    shared: dict[str, Any] = field(default_factory=dict)

    def broadcast(self, value: Any) -> Any:
        return self.shared.setdefault("value", value)

    def gather(self, value: Any) -> list[Any]:
        return list(HOSTS)


class Ended(Exception):  # noqa: N818
    """Stands for the end of a process. It ends the thread of a rank."""


@dataclass
class Saves:
    """Stands for what saves the run."""

    sentence: str
    ready: bool = True
    calls: int = 0
    asked_to_stop: bool = False

    def stops(self) -> bool:
        return self.asked_to_stop

    def save(self) -> str:
        self.calls += 1
        return self.sentence


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, int]]]:
    """What the ranks said when they ended, with hearts that beat quickly and end with the test."""
    ends: list[tuple[str, int]] = []
    over = threading.Event()
    beat = Heartbeat._beat

    def end(text: str, code: int, before: Callable[[], None] = lambda: None) -> None:
        ends.append((text, code))
        before()
        raise Ended

    def beat_until_the_end(self: Heartbeat) -> None:
        if over.is_set() or self._world.rank in self._world.shared.get("stopped", ()):
            raise Ended
        beat(self)

    monkeypatch.setattr(Heartbeat, "_beat", beat_until_the_end)
    monkeypatch.setattr(heartbeat, "end_at_once", end)
    monkeypatch.setattr(heartbeat, "BEAT", 0.02)
    monkeypatch.setattr(heartbeat.threading, "excepthook", lambda _: None)
    yield ends
    over.set()
    wait_until(lambda: all(thread.name != "heartbeat" for thread in threading.enumerate()))


def started(*ranks: int, limit: float = math.inf) -> list[Heartbeat]:
    shared: dict[str, Any] = {}
    return [Heartbeat(OneOfThree(rank, shared=shared), limit) for rank in ranks]


def wait_until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_rank_0_hears_what_the_others_do_and_nothing_of_strangers(ended):
    first, second, third = started(0, 1, 2)
    third._world.activity.begin("step 1")
    wait_until(lambda: {rank: doing.what for rank, doing in first._stalls.doing.items()}
               == {0: "starting", 1: "starting", 2: "step 1"})  # fmt: skip
    wait_until(lambda: 0 in second._stalls.heard)
    stranger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    where = "127.0.0.1", first._port
    for words in (b"\xff", b"[]", json.dumps(["token", 2, True, 9, 9, "strange", 0]).encode()):
        stranger.sendto(words, where)
    seen = first._stalls.heard[2]
    wait_until(lambda: first._stalls.heard[2] > seen)  # still at work
    assert first._stalls.doing[2].what == "step 1"
    assert ended == []


def test_when_the_limit_is_reached_rank_0_saves_the_run_and_ends_the_others(ended, capsys):
    first, _ = started(0, 1, limit=2.0)
    saves = first.rescuer = Saves("a checkpoint is there")
    wait_until(lambda: len(ended) == 2)
    assert saves.calls >= 1
    (text, code), quietly = ended
    assert text.endswith("in: starting (--stall_limit): a checkpoint is there. The same command goes on\n")
    assert (code, quietly) == (EXIT_STALLED, ("", EXIT_STALLED))
    assert capsys.readouterr().err.startswith("warning: ")


def test_the_run_is_saved_as_soon_as_a_rank_does_not_answer(ended, capsys):
    first, other = started(0, 1, limit=2.0)
    saves = first.rescuer = Saves("a checkpoint is there")
    wait_until(lambda: 1 in first._stalls.heard)
    other._world.shared["stopped"] = [1]
    wait_until(lambda: ended)
    warning, saved, *_ = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: rank 1 on node1 has not answered for")
    assert warning.endswith("s, last in: starting. After 0.0333 min of that the run ends (--stall_limit)")
    assert saved == "a checkpoint is there"
    assert saves.calls > 1  # and once more at the end


def test_a_run_that_is_to_stop_is_saved_sooner(ended, monkeypatch):
    monkeypatch.setattr(stalls, "NOTICE", 1000.0)
    monkeypatch.setattr(stalls, "HURRIED", 0.5)
    first, other = started(0, 1)
    saves = first.rescuer = Saves("a checkpoint is there")
    wait_until(lambda: 1 in first._stalls.heard)
    other._world.shared["stopped"] = [1]
    time.sleep(1)
    assert saves.calls == 0
    saves.asked_to_stop = True
    wait_until(lambda: saves.calls == 1)


def test_the_run_goes_on_when_its_ranks_went_on_while_it_was_saved(ended):
    (first,) = started(0, limit=1.0)
    saves = first.rescuer = Saves("")
    wait_until(lambda: saves.calls > 1)
    assert ended == []


@pytest.mark.parametrize(("rank", "speaks"), [(1, False), (2, True)])
def test_without_rank_0_the_others_end_and_one_of_another_host_says_so(rank, speaks, ended, capsys):
    first, other = started(0, rank, limit=2.0)
    wait_until(lambda: other._stalls.heard)
    first._world.shared["stopped"] = [0]
    wait_until(lambda: ended)
    said = "rank 0 on node1 has not answered for" in capsys.readouterr().err
    assert said is speaks
    ((text, code),) = ended
    assert (bool(text), code) == (speaks, EXIT_STALLED)
    assert not speaks or "the last checkpoint, if there is one, stays" in text


def test_ranks_whose_datagrams_do_not_come_are_counted(ended, monkeypatch, capsys):
    monkeypatch.setattr(heartbeat, "NOTICE", 0.5)
    started(0, 1)
    said = ""

    def heard() -> bool:
        nonlocal said
        said += capsys.readouterr().err
        return bool(said)

    wait_until(heard)
    assert said.startswith("warning: 1 of 3 ranks are not heard at UDP port")
    assert ended == []
