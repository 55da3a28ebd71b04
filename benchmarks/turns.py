"""A process that measures itself when it is asked to, so that several of them take turns on one machine."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any


class Side:
    """A program that answers each line it reads with one JSON object, and its own start with the first.

    `found` are the answers to `measure`. SystemExit: the program ended; what it printed says why.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self.found: list[dict[str, Any]] = []

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for the end of the program, which ends with its input."""
        self.process.communicate()

    def measure(self) -> None:
        """Let the program measure once, and keep what it says."""
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.found.append(self.answer())

    def answer(self) -> dict[str, Any]:
        """Wait for the next JSON object of the program. Whatever else its libraries print is passed over."""
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith("{"):
                print(line, end="", flush=True)
                return dict(json.loads(line))
        raise SystemExit(f"{self.process.args!r} ended with exit code {self.process.wait()}")
