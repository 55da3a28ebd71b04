"""Writes docs/options.md, the tables of all options, from the parsers of the programs: python -m utils.options_page"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "options.md"
PROGRAMS = {  # what a user types → the module with its `build_parser`
    "train.py": "training.options",
    "predict.py": "predict",
    "CAMELYON17_PREPROCESSING.preprocess": "CAMELYON17_PREPROCESSING.preprocess",
    "evaluation.camelyon16": "evaluation.camelyon16",
    "evaluation.camelyon17": "evaluation.camelyon17",
    "evaluation.segmentation": "evaluation.segmentation",
    "evaluation.folds": "evaluation.folds",
    "evaluation.table": "evaluation.table",
    "evaluation.audit": "evaluation.audit",
    "utils.plan": "utils.plan",
}
HEADER = """# Options

This page is written by `python -m utils.options_page` from the programs' own `--help`: do not edit it. An option
without a default is not set, unless its meaning says otherwise. In `train.py` a step is one image: a batch of B on N
ranks is B·N steps. The first group of `train.py` has the names, defaults and meaning of the
[original suite](https://github.com/sara-nl/SURF-segmentation).
"""
# A default that stands in a help text; Python 3.10 to 3.12 add one to --no- options.
STATED_DEFAULT = re.compile(r" ?\(default: (.*?)\)")


def parser_of(program: str) -> argparse.ArgumentParser:
    """Return the parser of a key of PROGRAMS."""
    parser: argparse.ArgumentParser = importlib.import_module(PROGRAMS[program]).build_parser()
    return parser


def page() -> str:
    """Return the whole page."""
    return "\n".join([HEADER, *(line for program in PROGRAMS for line in _section(program))])


def _section(program: str) -> Iterator[str]:
    parser = parser_of(program)
    command = program if program.endswith(".py") else f"python -m {program}"
    yield f"## {program}\n"
    yield f"`{command}`: {_text(parser.description or '')}\n"
    for group in parser._action_groups:
        rows = [_row(parser, action) for action in group._group_actions if action.dest != "help"]
        if rows:
            if group.title and group not in (parser._optionals, parser._positionals):
                yield f"### {program}: {group.title}\n"
            yield "| option | default | choices | meaning |\n|---|---|---|---|"
            yield "\n".join(rows) + "\n"


def _row(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    formatter = argparse.HelpFormatter(parser.prog)  # ours adds the default to the text
    meaning = formatter._expand_help(action) if action.help else ""
    stated = STATED_DEFAULT.search(meaning)
    default = _default(action) or (_text(stated.group(1)) if stated else "")
    names = ", ".join(f"`{name}`" for name in action.option_strings)
    values = " ".join(f"`{value}`" for value in action.choices or ())
    required = "required" if action.required else default
    return f"| {names} | {required} | {values} | {_text(STATED_DEFAULT.sub('', meaning))} |"


def _default(action: argparse.Action) -> str:
    """Return the default as a user would type it; empty if there is none."""
    value = action.default
    if value is None or value is argparse.SUPPRESS or value == []:
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"`{' '.join(map(str, value)) if isinstance(value, (list, tuple)) else value}`"


def _text(text: str) -> str:
    """Return a help text as Markdown: options and patterns such as <slide>.csv as code, no characters of a table."""
    code = re.sub(r"((?<![\w-])--[a-z]\w*|[^\s(]*<[^\s,;)]+)", r"`\1`", text)
    return code.replace("|", "\\|").replace("*", "·")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m utils.options_page", description="Write docs/options.md."
    )
    parser.parse_args(argv)
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written: {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
