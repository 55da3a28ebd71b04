"""Errors of slides, labels and their files. All of them are the user's to mend."""

from __future__ import annotations

from utils.cli import UserError


class DataError(UserError):
    """Input that cannot be used. The message names the file and what is wrong with it."""


class ReadError(DataError):
    """A region of a slide that cannot be read or decoded; a second attempt may succeed."""
