import re

from utils.ranks.world import World
from utils.reporting.environment import describe_environment, describe_nodes, suite_version


def test_suite_is_named_without_git():
    assert re.fullmatch(r"\d+\.\d+\.\d+, sources [0-9a-f]{12}", suite_version())


def test_nodes_are_counted():
    assert describe_nodes(["a"]) == "1 on 1 node: a (1)"
    assert describe_nodes(["a", "b", "a"]) == "3 on 2 nodes: a (2), b (1)"
    assert describe_nodes([f"n{i}" for i in range(64)]).endswith("n7 (1), …")


def test_all_that_decides_speed_and_results_is_named():
    found = describe_environment(World(), [])
    assert {
        "suite",
        "command",
        "ranks",
        "devices",
        "CPU",
        "memory",
        "Horovod",
        "launcher",
        "container",
        "TensorFlow",
    } <= set(found)
    assert all(isinstance(text, str) and text for text in found.values())
    assert "thread" in found["devices"]
    assert found["Horovod"] == "not used, one process"
