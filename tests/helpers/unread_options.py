"""Which options a program reads: an option that is parsed and never read does nothing."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def unread_options(parser: argparse.ArgumentParser, files: Iterable[str]) -> set[str]:
    """Return the options of `parser` that none of the Python files (patterns from the top of the clone) reads.

    An option is read as `options.NAME`, or as `options["NAME"]` or `options.get("NAME")` where options.json is read.
    """
    read: set[str] = set()
    for path in (path for pattern in files for path in ROOT.glob(pattern)):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and _is_options(node.value):
                read.add(node.attr)
            if (
                isinstance(node, ast.Subscript)
                and _is_options(node.value)
                and isinstance(node.slice, ast.Constant)
            ):
                read.add(str(node.slice.value))
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "get"
                and _is_options(node.func.value)
            ):
                read |= {str(word.value) for word in node.args[:1] if isinstance(word, ast.Constant)}
    return {action.dest for action in parser._actions} - {"help"} - read


def _is_options(node: ast.expr) -> bool:
    return (isinstance(node, ast.Name) and node.id == "options") or (
        isinstance(node, ast.Attribute) and node.attr == "options"
    )
