"""The recipes of images: both do the same, with files that are there. They are not built here."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.helpers.launch import ROOT

FOLDER = ROOT / "container"
DOCKERFILE = (FOLDER / "Dockerfile").read_text()
APPTAINER = (FOLDER / "apptainer.def").read_text()


def section(name: str) -> str:
    """Return the text of a section of apptainer.def."""
    parts = re.split(r"^%(\w+)\n", APPTAINER, flags=re.MULTILINE)
    return parts[parts.index(name) + 1].strip()


def test_both_start_from_the_same_system_with_the_same_arguments() -> None:
    arguments = dict(re.findall(r"^ARG (\w+)=(\S+)$", DOCKERFILE, re.MULTILINE))
    expected = dict(re.findall(r"(\w+)=(\S+)", section("arguments")))
    assert {name.lower(): value for name, value in arguments.items()} == expected
    assert set(expected) == {"base", "mpi", "device"}


def test_both_copy_the_clone_and_set_it_up() -> None:
    assert re.search(r"^COPY \. (\S+)$", DOCKERFILE, re.MULTILINE)[1] == section("files").split()[1]
    script = re.search(r"^RUN sh (\S+)$", DOCKERFILE, re.MULTILINE)[1]
    assert section("post").endswith(f"sh {script}")
    assert (ROOT / script.removeprefix("/opt/extended-fov/")).exists()


def test_both_have_the_same_environment_and_start_train_py() -> None:
    environment = re.search(r"^ENV (.+)$", DOCKERFILE, re.MULTILINE)[1]
    assert section("environment") == f"export {environment}"
    # mpirun's own folder has one name for it and for its ranks, whose PMIx compares them: with another one they hang.
    assert "OPAL_PREFIX" not in environment
    words = re.findall(r'"([^"]+)"', re.search(r"^ENTRYPOINT (.+)$", DOCKERFILE, re.MULTILINE)[1])
    assert section("runscript") == f'exec {" ".join(words)} "$@"'
    assert (ROOT / words[-1].removeprefix("/opt/extended-fov/")).exists()


def test_the_image_gets_no_environment_of_the_clone() -> None:
    assert {".venv*", "logs", "data"} <= set((ROOT / ".dockerignore").read_text().split())


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_the_script_of_the_set_up_is_valid(shell: str) -> None:
    subprocess.run([shell, "-n", FOLDER / "build.sh"], check=True)
