"""How the ranks of a job are divided into groups, and which numbers of groups are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from utils.cli import UserError
from utils.ranks.allocation import Group, Host, divide, hosts_of_slurm, read_hosts


def groups(text: str, ranks: int, number: int) -> list[str]:
    """Return each group as "RANKS: HOSTS (SHARE)"."""
    found = [group.environment() for group in divide(read_hosts(text), ranks, number)]
    return [f"{e['NP']}: {e.get('RANK_HOSTS', '-')} {e.get('HOST_SHARE', '')}".strip() for e in found]


@pytest.mark.parametrize(
    ("hosts", "ranks", "number", "expected"),
    [
        # On this host, or on one that the launcher knows.
        ("", 4, 2, ["2: - 1/2", "2: - 2/2"]),
        ("a:4", 6, 3, ["2: - 1/3", "2: - 2/3", "2: - 3/3"]),
        # Whole hosts.
        ("a:2,b:2", 4, 2, ["2: a:2", "2: b:2"]),
        ("a:2,b:2,c:2,d:2", 8, 2, ["4: a:2,b:2", "4: c:2,d:2"]),
        ("a,b", 2, 2, ["1: a:1", "1: b:1"]),
        # As many as that takes, wherever they stand in the list.
        ("a:1,b:3,c:1,d:1", 6, 2, ["3: b:3", "3: a:1,c:1,d:1"]),
        ("a:1,b:2,c:2,d:1", 6, 2, ["3: b:2,a:1", "3: c:2,d:1"]),
        # Shares of hosts, of equal size.
        ("a:4,b:4", 8, 4, ["2: a:2 1/2", "2: a:2 2/2", "2: b:2 1/2", "2: b:2 2/2"]),
        ("a:4,b:2", 6, 3, ["2: a:2 1/2", "2: a:2 2/2", "2: b:2"]),
        # Hosts with room for other numbers of ranks than there are: MPIRUN_ARGS says where they are.
        ("a:48,b:48,c:48,d:48", 8, 2, ["4: a:48,b:48", "4: c:48,d:48"]),
        ("a:48,b:48", 4, 4, ["1: a:24 1/2", "1: a:24 2/2", "1: b:24 1/2", "1: b:24 2/2"]),
    ],
)
def test_groups_have_whole_hosts_or_equal_shares_of_one(hosts, ranks, number, expected):
    assert groups(hosts, ranks, number) == expected


@pytest.mark.parametrize(
    ("hosts", "ranks", "number", "said"),
    [
        ("", 4, 3, "4 ranks cannot be divided into 3 equal groups. AT_ONCE can be 1 or 2 or 4 here, or 3 with NP=6"),
        ("a:2,b:2", 4, 3, "4 ranks cannot be divided into 3 equal groups. AT_ONCE can be 1 or 2 or 4 here"),
        ("a:4,b:4,c:4", 12, 2, "a (4), b (4), c (4) cannot be put together into groups of 6 ranks without dividing"),
        ("a:4,b:4,c:4", 12, 2, "AT_ONCE can be 1 or 3 or 6 or 12 here"),
        ("a:3,b:1", 4, 2, "the 3 ranks of a are no multiple of the 2 of a group. AT_ONCE can be 1 or 4 here"),
        ("a:3,b:2", 4, 2, "the hosts have room for 5 ranks, which is no multiple of 2"),
    ],
)  # fmt: skip
def test_what_cannot_be_divided_is_refused_with_what_can(hosts, ranks, number, said):
    with pytest.raises(UserError) as caught:
        divide(read_hosts(hosts), ranks, number)
    assert str(caught.value).startswith(f"AT_ONCE={number}: ")
    assert said in str(caught.value)


def test_one_group_is_what_the_scripts_find_by_themselves():
    assert divide(read_hosts("a:2,b:1"), 3, 1) == [Group()]
    assert Group().environment() == {}


@pytest.mark.parametrize("text", ["a:x", "a:0", ":2", "a:2,:"])
def test_a_list_of_hosts_that_is_none_is_refused(text):
    with pytest.raises(UserError, match="in RANK_HOSTS is not HOST:RANKS"):
        read_hosts(text)


def test_hosts_of_a_slurm_job(tmp_path: Path, monkeypatch):
    program = tmp_path / "scontrol"
    program.write_text(
        '#!/bin/sh\n[ "$*" = "show hostnames node[1-3]" ] && printf "node1\\nnode2\\nnode3\\n"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    job = {"SLURM_JOB_NODELIST": "node[1-3]", "SLURM_TASKS_PER_NODE": "4(x2),3"}
    assert hosts_of_slurm(job) == [Host("node1", 4), Host("node2", 4), Host("node3", 3)]
    assert hosts_of_slurm({}) == []


def test_a_group_says_where_it_is():
    names = [str(group) for group in divide(read_hosts("a:2,b:1,c:1"), 4, 2)]
    assert names == ["2 ranks on a", "2 ranks on b, c"]
    assert str(divide([], 2, 2)[1]) == "1 rank with share 2/2 of its cores"
