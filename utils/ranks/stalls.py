"""Finds which rank does not answer, or which one the others wait for, from what all ranks say that they do."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from utils.ranks.activity import Doing

NOTICE = 60.0  # seconds after which a rank is named
HURRIED = 10.0  # the same for one that does not answer, when the run is to stop: Slurm kills it after 30 s
ALL_ALIKE = 300.0  # the same, where no rank is behind the others: a step or a check may take that long
SHOWN = 8  # number of ranks that are named
JITTER = 1.0  # differences in time up to this are those of the messages


class Stalls:
    """Collects what is heard of the ranks on `hosts` (by rank), and says what is wrong. Times are seconds of one clock.

    `limit` is the time after which the run should end, infinity for never. A rank counts from when it is first heard.
    Whoever does not hear of all ranks cannot say which one the others wait for, only which one does not answer.
    """

    def __init__(self, hosts: Sequence[str], limit: float, hears_all: bool = True) -> None:
        self.hosts = hosts
        self.limit = limit
        self.hears_all = hears_all
        self.first_notice = min(NOTICE, limit / 2)  # before the end in any case
        self.trains = (
            False  # before, slides may be checked for hours: ranks that answer are not a reason to end
        )
        self.stops = False  # whether the run was asked to stop
        self.heard: dict[int, float] = {}  # time of the last message, by rank
        self.doing: dict[int, Doing] = {}  # its content; `since` is of the clock of this process
        # Longest time for which all ranks answered but none went on in training, and then the run went on: steps and
        # validations may be slow. What takes no more than twice as long is not said.
        self._longest = 0.0
        self._quiet = 0.0  # that time now
        self._next = 0.0  # length of a stall at which the next line about it is due
        self._lasted = 0.0  # how long the present stall has lasted

    def hear(self, rank: int, doing: Doing, now: float) -> None:
        """Take what a rank says that it does; its message came at `now`."""
        before = self.doing.get(rank)
        if before and before[:3] == doing[:3] and doing.since - before.since < JITTER:
            doing = before
        self.heard[rank], self.doing[rank] = now, doing

    def skip(self, seconds: float) -> None:
        """Forget a time in which this process itself stood still and heard of nobody."""
        self.heard = {rank: heard + seconds for rank, heard in self.heard.items()}
        self.doing = {rank: doing._replace(since=doing.since + seconds) for rank, doing in self.doing.items()}

    def silent(self, now: float) -> list[int]:
        """Return the ranks that have not answered for the time after which they are named."""
        after = min(self.first_notice, HURRIED) if self.stops else self.first_notice
        return [rank for rank, heard in self.heard.items() if now - heard >= after]

    def silence(self, now: float) -> float:
        """Return for how long the rank that was heard last of all has been silent."""
        return max((now - heard for heard in self.heard.values()), default=0.0)

    def quiet(self, now: float) -> float:
        """Return for how long no rank has gone on."""
        return min((now - doing.since for doing in self.doing.values()), default=0.0)

    def behind(self) -> list[int]:
        """Return the ranks that the others wait for; none if all are at the same point."""
        points = {rank: (doing.place, doing.order) for rank, doing in self.doing.items()}
        last = min(points.values(), default=None)
        found = [rank for rank, point in points.items() if point == last]
        return [] if len(found) == len(points) else found

    def notice(self, now: float) -> str:
        """Return the line that is due, "" if none is. Each stall is said again when it is twice as long as before."""
        quiet = 0.0 if self.silent(now) else self.quiet(now)
        if self.trains and quiet < self._quiet:  # some rank has gone on
            self._longest = max(self._longest, self._quiet)
        self._quiet = quiet
        seconds, text = self._stall(now)
        if not text:
            lasted, self._lasted, self._next = self._lasted, 0.0, 0.0
            return f"the ranks go on after {lasted:.0f} s" if lasted else ""
        self._lasted = seconds
        if seconds < self._next:
            return ""
        self._next = 2 * seconds
        ends = self.limit < math.inf and (self.trains or self.silent(now))
        end = f". After {self.limit / 60:.3g} min of that the run ends (--stall_limit)" if ends else ""
        return f"warning: {text}{end}"

    def reason_to_end(self, now: float) -> str:
        """Return the line about a stall that has reached the limit, "" if none has."""
        quiet = self.trains and self.quiet(now) >= max(self.limit, 2 * self._longest)
        return self._stall(now)[1] if quiet or self.silence(now) >= self.limit else ""

    def _stall(self, now: float) -> tuple[float, str]:
        """Return the seconds that a stall has lasted and the line about it, "" if there is none."""
        silent = self.silent(now)
        if silent:
            seconds = self.silence(now)
            last = max(self.doing[rank] for rank in silent).what
            return seconds, f"{self._names(silent)} not answered for {seconds:.0f} s, last in: {last}"
        if not self.hears_all:
            return 0.0, ""
        seconds, behind, usual = self.quiet(now), self.behind(), 2 * self._longest
        if behind and seconds >= max(self.first_notice, usual):
            doing = self.doing[behind[0]]
            return seconds, (
                f"{self._names(behind)} been in: {doing.what}, for {now - doing.since:.0f} s; the others wait"
            )
        if not behind and seconds >= max(min(ALL_ALIKE, self.limit / 2), usual):
            what = next(iter(self.doing.values())).what
            return seconds, f"no rank has gone on for {seconds:.0f} s, all are in: {what}"
        return 0.0, ""

    def _names(self, ranks: Sequence[int]) -> str:
        """Return for instance "rank 1 on node2 has" or "ranks 1, 2 on node2 and 5 on node3 have"."""
        by_host = defaultdict(list)
        for rank in sorted(ranks)[:SHOWN]:
            by_host[self.hosts[rank]].append(str(rank))
        named = " and ".join(f"{', '.join(numbers)} on {host}" for host, numbers in by_host.items())
        if len(ranks) == 1:
            return f"rank {named} has"
        more = f" and {len(ranks) - SHOWN} more" if len(ranks) > SHOWN else ""
        return f"ranks {named}{more} have"
