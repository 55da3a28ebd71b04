"""Which GPU a rank takes, and what is said where ranks and GPUs do not fit. No GPU is needed."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

import train
from training import memory
from training.option_checks import parse_options
from utils.cli import UserError
from utils.ranks import devices
from utils.ranks.devices import devices_of_rank, free_gpu_memory, select_devices, uuid_of_first_gpu
from utils.ranks.world import World
from utils.reporting import environment


@dataclass(frozen=True)
class Node(World):
    """Rank 0 of two on a node; `others` is what the other rank gathers."""

    size: int = 2
    local_size: int = 2
    others: list[Any] = field(default_factory=list)

    def gather(self, value: Any) -> list[Any]:
        return [value, *(self.others if isinstance(value, tuple) else [value])]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What TensorFlow is told. It sees two GPUs."""
    told: list[Any] = []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _: ["gpu 0", "gpu 1"])
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda devices, *_: told.append(devices))
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", lambda *_: None)
    for threads in ("set_intra_op_parallelism_threads", "set_inter_op_parallelism_threads"):
        monkeypatch.setattr(tf.config.threading, threads, lambda _: None)
    monkeypatch.setattr(tf.config.optimizer, "set_experimental_options", told.append)
    return told


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver's program that knows two GPUs."""
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\ncase $1 in *uuid*) echo GPU-aa; echo GPU-bb;; *memory.free*) echo 1000; echo 24000;; esac\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


def test_a_rank_has_the_gpu_of_its_number_or_none(seen: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cpu_flags", frozenset)
    assert select_devices(World(1, 2, 1, 2, True), no_cuda=False) == ["gpu 1"]
    assert select_devices(World(1, 2, 1, 2, True), no_cuda=True) == []
    assert seen == ["gpu 1", [], {"remapping": False}]  # without AVX-512 fused convolutions are slow
    with pytest.raises(UserError, match="3 ranks on this node but 2 GPUs"):
        select_devices(World(1, 3, 1, 3, True), no_cuda=False)


@pytest.mark.parametrize(("other", "fits"), [("GPU-bb", True), ("GPU-aa", False)])
def test_ranks_that_see_one_gpu_take_it_if_it_is_not_the_same(
    other: str, fits: bool, seen: list[Any], driver: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _: ["the only one"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    world = Node(horovod=True, others=[(platform.node(), other)])
    if fits:
        assert devices_of_rank(world, False) == ["the only one"]
        assert seen == ["the only one"]
    else:
        with pytest.raises(UserError, match="2 ranks on this node but 1 GPUs"):
            devices_of_rank(world, False)


def test_without_a_driver_that_tells_ranks_with_one_gpu_each_are_not_refused(
    seen: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _: ["the only one"])
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi
    assert devices_of_rank(Node(horovod=True, others=[(platform.node(), "")]), False) == ["the only one"]


@pytest.mark.parametrize(
    ("visible", "uuid", "free"),
    [
        (None, "GPU-aa", 1000),
        ("1", "GPU-bb", 24000),
        ("1,0", "GPU-bb", 24000),
        ("GPU-bb", "GPU-bb", 24000),
        ("7", "", None),
    ],
)
def test_the_driver_is_asked_of_the_gpu_that_is_visible(
    visible: str | None, uuid: str, free: int | None, driver: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert uuid_of_first_gpu() == uuid
    if free is None:
        with pytest.raises(UserError, match="nvidia-smi does not say"):
            free_gpu_memory()
    else:
        assert free_gpu_memory() == free << 20


def test_a_gpu_that_tensorflow_does_not_see_is_said_with_the_reason(
    tmp_path: Path, seen: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _: [])
    monkeypatch.setattr(devices, "NVIDIA", tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices_of_rank(World(), False) == []
    assert "which hides them" in capsys.readouterr().err
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    for built, said in ((False, "DEVICE=gpu sh run_train.sh"), (True, "--verbose shows")):
        monkeypatch.setattr(tf.test, "is_built_with_cuda", lambda built=built: built)
        devices_of_rank(World(), False)
        assert said in capsys.readouterr().err
    devices_of_rank(World(), True)  # it is meant
    monkeypatch.setattr(devices, "NVIDIA", tmp_path / "nowhere")
    devices_of_rank(World(), False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("option", "found", "said"),
    [("--deterministic", ["gpu 0"], "--deterministic works on CPUs"), ("--jit", [], "--jit works on GPUs")],
)
def test_what_the_device_cannot_do_is_refused(
    option: str, found: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "devices_of_rank", lambda *_: found)
    with pytest.raises(UserError, match=said):
        train.run(parse_options(["--slide_path", str(tmp_path), option]))


def test_the_memory_report_is_of_the_gpu(
    driver: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    taken = {512: 2e9, 1024: 5e9, 2048: 17e9}
    monkeypatch.setattr(
        memory, "measure", lambda options, steps=1, **o: {"peak": taken[o.get("img_size", options.img_size)]}
    )
    options = parse_options(["--slide_path", str(tmp_path), "--img_size", "2048"])
    text = memory.report(options, 4, on_gpu=True)
    assert "23.9 GB on the GPU of each rank" in text  # 24000 MiB, less what is left over
    assert "measured in one step of 2048²: 17.0 GB" in text
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(UserError, match="it does not fit"):
        memory.report(options, 4, on_gpu=True)


def test_gradients_that_go_through_main_memory_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment.hvd, "nccl_built", lambda: 0)
    world = World(0, 2, 0, 2, True)
    assert "main memory" in environment._reduction(world, ["gpu"])
    assert environment._reduction(world, []) == environment._reduction(World(), ["gpu"]) == ""
    monkeypatch.setattr(environment.hvd, "nccl_built", lambda: 1)
    assert environment._reduction(world, ["gpu"]) == ""
