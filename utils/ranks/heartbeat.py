"""Ranks tell each other that they live and what they do, so that a rank that hangs is named and the run ends.

All ranks are blocked inside of Horovod when one of them hangs, but a thread of Python runs on. The thread of each rank
sends a datagram (UDP) to rank 0 every other second, and rank 0 answers. A process that is stopped, or whose node hangs
or has vanished, sends nothing; a rank that lives but hangs says what it is in. Where datagrams do not get through, rank
0 says so once, and nothing else happens.
"""

from __future__ import annotations

import contextlib
import json
import platform
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Protocol

from tqdm import tqdm

from utils.cli import EXIT_STALLED
from utils.ranks.activity import Doing
from utils.ranks.interfaces import addresses
from utils.ranks.killed_rank import end_at_once
from utils.ranks.single import Ranks
from utils.ranks.stalls import NOTICE, Stalls

BEAT = 2.0  # seconds between two datagrams of a rank
PAUSE = 10.0  # seconds: if a beat takes longer, this process was stopped itself
SAVE_WITHIN = 600.0  # seconds for the last checkpoint: what hangs may be the file system
LARGEST = 4096  # bytes of a datagram
WENT_ON = "the ranks went on while a checkpoint was written, which is removed"


class Rescuer(Protocol):
    """Saves a run on rank 0 when the others do not go on."""

    @property
    def ready(self) -> bool:
        """Return whether there is anything to save. Until then ranks that answer are never a reason to end."""

    @property
    def stops(self) -> Callable[[], bool]:
        """Return what tells whether the run was asked to stop: soon it may be killed."""

    def save(self) -> str:
        """Save what can be saved. Return the sentence about it, or "" if the ranks went on meanwhile."""


class Heartbeat:
    """Watches over the ranks from a thread, until the process ends. Only a run of several ranks has it."""

    def __init__(self, world: Ranks, limit: float) -> None:
        """Collective: tell all ranks where rank 0 listens. `limit` is in seconds, infinity for never."""
        self.rescuer: Rescuer | None = None
        self._world = world
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("", 0))
        where = own_addresses(), self._socket.getsockname()[1], secrets.token_hex(8)
        self._addresses, self._port, self._token = world.broadcast(where)
        hosts = world.gather(platform.node())
        self._stalls = Stalls(hosts, limit, hears_all=world.is_first)
        # Of the ranks that hear nothing from rank 0, one says so: one of another host, since all of that may be gone.
        others = [rank for rank, host in enumerate(hosts) if host != hosts[0]]
        self._speaks = world.rank in (0, (others or [1])[0])
        self._ends = False  # whether rank 0 tells the others to end
        threading.Thread(target=self._run, name="heartbeat", daemon=True).start()

    def _run(self) -> None:
        start, told = time.monotonic(), False
        while True:
            self._beat()
            if not told and time.monotonic() - start > NOTICE:
                told = True
                self._say_who_is_not_heard()
            self._judge()

    def _beat(self) -> None:
        """Tell rank 0 that this rank lives, and take what comes until the next beat is due."""
        start = time.monotonic()
        if not self._world.is_first:
            self._tell_first()
        self._listen(start + BEAT)
        seconds = time.monotonic() - start
        if seconds > PAUSE:
            self._stalls.skip(seconds)

    def _tell_first(self) -> None:
        for address in self._addresses:  # some may be those of networks that are not shared
            self._send((address, self._port))

    def _send(self, address: tuple[str, int]) -> None:
        doing = self._world.activity.now
        seconds = time.monotonic() - doing.since
        values = [self._token, self._world.rank, self._ends, *doing[:3], seconds]
        with contextlib.suppress(OSError):  # for instance no route there
            self._socket.sendto(json.dumps(values).encode(), address)

    def _listen(self, until: float) -> None:
        """Take what comes until then; on rank 0 answer it."""
        while (left := until - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                data, sender = self._socket.recvfrom(LARGEST)
            except OSError:  # nothing came, or nobody listened where this rank sent something
                continue
            if self._take(data) and self._world.is_first:
                self._send(sender)

    def _take(self, data: bytes) -> bool:
        """Take a datagram. Return whether it is one of this run."""
        now = time.monotonic()
        try:
            token, rank, ends, place, order, what, seconds = json.loads(data)
            doing = Doing(int(place), int(order), str(what), now - float(seconds))
        except (ValueError, TypeError):
            return False
        if token != self._token or rank not in range(self._world.size):
            return False
        if ends:
            end_at_once("", EXIT_STALLED)  # rank 0 says why
        self._stalls.hear(rank, doing, now)
        return True

    def _judge(self) -> None:
        """Say what is wrong with the ranks, and end the run when it is wrong for too long."""
        now = time.monotonic()
        if self._world.is_first:
            self._stalls.hear(0, self._world.activity.now, now)
        self._stalls.trains = self.rescuer is not None and self.rescuer.ready
        self._stalls.stops = self.rescuer is not None and self.rescuer.stops()
        line = self._stalls.notice(now)
        if line and self._speaks:
            tqdm.write(line, file=sys.stderr)
        if line and self._stalls.trains and self._stalls.silent(now):
            # At once, since the launcher kills all ranks when it notices that a node has vanished.
            tqdm.write(self._save() or WENT_ON, file=sys.stderr)
        reason = self._stalls.reason_to_end(now)
        if reason:
            self._end(reason)

    def _save(self) -> str:
        """Let the rescuer save the run in another thread, and return what it says, while this one lets nobody wait."""
        said: list[str] = []
        rescuer = self.rescuer
        assert rescuer is not None
        thread = threading.Thread(target=lambda: said.append(rescuer.save()), daemon=True)
        thread.start()
        until = time.monotonic() + SAVE_WITHIN
        while thread.is_alive() and time.monotonic() < until:
            self._beat()
        return said[0] if said else "no checkpoint could be written, the last one stays"

    def _end(self, reason: str) -> None:
        """End this process, and on rank 0 all others before, unless the ranks go on while a checkpoint is written."""
        sentence = self._save() if self._stalls.trains else "the last checkpoint, if there is one, stays"
        if sentence:
            text = f"{reason} (--stall_limit): {sentence}. The same command goes on\n"
            end_at_once(text if self._speaks else "", EXIT_STALLED, self._end_others)

    def _end_others(self) -> None:
        if self._world.is_first:
            self._ends = True
            self._listen(time.monotonic() + 2 * BEAT)  # the answers end them

    def _say_who_is_not_heard(self) -> None:
        missing = self._world.size - len(self._stalls.heard)
        if self._world.is_first and missing:
            tqdm.write(
                f"warning: {missing} of {self._world.size} ranks are not heard at UDP port {self._port} of "
                f"{', '.join(self._addresses)} (a firewall?): it would not be noticed if they stall",
                file=sys.stderr,
            )


def own_addresses() -> list[str]:
    """Return the IPv4 addresses of this host by which others may reach it; that of the loopback if it has no other."""
    return list(addresses().values()) or ["127.0.0.1"]
