"""The README and docs/ are true: links, options, modules, files and messages that they name are there."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from utils import demo_slides, options_page

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted(ROOT.glob("[A-Za-z]*/*.md")),
]
# Options of other programs that the pages name: launchers, sbatch, pip, aws, pytest, run_train.sh itself.
FOREIGN = {
    *(
        "--image",  # of QuPath
        "--args",
        "--sandbox",  # of apptainer, buildah and mmdebstrap
        "--tls-verify",
        "--variant",
        "--oversubscribe",
        "--backend-store-uri",
        "--bind-to",
        "--prefix",
        "--gloo",
        "--mpi",
        "--nodes",
        "--array",
        "--ntasks-per-node",
        "--cpus-per-task",
    ),
    *(
        "--gpus-per-node",
        "--gpus-per-task",
        "--no-sign-request",
        "--recursive",
        "--include",
        "--logdir",
        "--help",
        "--tensorboard",
    ),
    # sbatch's, and those of containers
    *("--export", "--partition", "--time", "--signal", "--requeue", "--open-mode", "--output"),
    *("--build-arg", "--bind", "--env", "--nv", "--gpus", "--rm", "--shm-size"),
}
FOREIGN_MESSAGES = {"mpirun", "orted: command not found", "options.json", "splits.json"}

named = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def headings(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    seen: Counter[str] = Counter()
    anchors = set()
    for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        anchors.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return anchors


def test_the_page_of_options_is_that_of_the_parsers() -> None:
    assert options_page.PAGE.read_text(encoding="utf-8") == options_page.page(), (
        "python -m utils.options_page"
    )


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


@named
def test_relative_links_lead_to_a_file_and_its_heading(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in headings(target), link


@named
def test_options_are_those_of_a_parser(page: Path) -> None:
    parsers = [*map(options_page.parser_of, options_page.PROGRAMS), demo_slides.build_parser()]
    known = {name for parser in parsers for action in parser._actions for name in action.option_strings}
    for program in (ROOT / "benchmarks").glob("*.py"):
        known |= set(re.findall(r'"(--[a-z_]+)"', program.read_text()))
    found = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", re.sub(r"\]\([^)]*\)", "", page.read_text())))
    assert not found - known - FOREIGN


@named
def test_modules_scripts_and_files_are_there(page: Path) -> None:
    text = page.read_text()
    for module in re.findall(r"python3? -m ([\w.]+)", text):
        assert importlib.util.find_spec(module), module
    names = set(re.findall(r"`([\w/]+\.(?:py|sh|md|toml|cff))`", text))
    names |= set(re.findall(r"(?:sh|python) (?:-u )?([\w/]+\.(?:sh|py))", text))
    for name in names:
        folders = [ROOT, page.parent] if "/" in name else [path.parent for path in ROOT.glob(f"*/**/{name}")]
        assert any((folder / name).exists() for folder in [ROOT, *folders]), name


def literals() -> Iterator[str]:
    """The texts in the sources, with … for what is put into them."""
    folders = (
        "training",
        "samplers",
        "models",
        "prediction",
        "evaluation",
        "utils",
        "CAMELYON17_PREPROCESSING",
    )
    for path in [
        ROOT / "train.py",
        ROOT / "predict.py",
        *(p for name in folders for p in (ROOT / name).rglob("*.py")),
    ]:
        for node in ast.walk(ast.parse(path.read_text())):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            texts = [part.value if isinstance(part, ast.Constant) else "…" for part in parts]
            if all(isinstance(text, str) for text in texts):
                yield re.sub(r"%[sg]|\{\}", "…", "".join(texts))
    for path in (*ROOT.glob("run_*.sh"), ROOT / "utils/env.sh"):
        yield from re.sub(r"\$\{?\w+[^}\s\"']*\}?", "…", path.read_text()).splitlines()


def test_messages_of_the_troubleshooting_page_are_in_the_sources() -> None:
    rows = re.findall(r"^\| ([^|]*`[^|]*) \|", (ROOT / "docs/troubleshooting.md").read_text(), re.MULTILINE)
    messages = [text for row in rows for text in re.findall(r"`([^`]+)`", row)]
    assert len(messages) > 100
    texts = "\0".join(literals())
    missing = []
    for message in messages:
        pieces = [re.escape(piece) for piece in message.split("…") if piece.strip()]
        if message not in FOREIGN_MESSAGES and not re.search("[^\0]*".join(pieces), texts):
            missing.append(message)
    assert not missing
