"""Exported models that do more than compute are not run unless they are trusted."""

from __future__ import annotations

from pathlib import Path

import pytest
import tensorflow as tf

from predict import main
from prediction.exported import load_exported
from tests.helpers.predicting import words
from utils.cli import UserError

SIGNATURE = [tf.TensorSpec((None, None, None, 3), tf.uint8)]


def _red(images: tf.Tensor) -> tf.Tensor:
    tumour = tf.cast(images[..., 0], tf.float32) / 255
    return tf.stack([1 - tumour, tumour], -1)


class Writes(tf.Module):
    """Writes a file when it is called, `deep` in a branch, or as soon as it is loaded."""

    def __init__(self, target: Path, kind: str) -> None:
        super().__init__()
        self.target, self.kind = str(target), kind
        if kind == "table":  # its initial values are read from a file when the model is loaded
            target.with_suffix(".txt").write_text("a\n")
            source = tf.lookup.TextFileInitializer(
                str(target.with_suffix(".txt")),
                tf.string,
                tf.lookup.TextFileIndex.WHOLE_LINE,
                tf.int64,
                tf.lookup.TextFileIndex.LINE_NUMBER,
            )
            self.table = tf.lookup.StaticHashTable(source, -1)

    @tf.function(input_signature=SIGNATURE)
    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        if self.kind == "read":
            return _red(images) * tf.cast(tf.strings.length(tf.io.read_file(self.target)), tf.float32)
        if self.kind == "python":
            return tf.ensure_shape(tf.py_function(_red, [images], tf.float32), (None, None, None, 2))
        if self.kind == "print":
            tf.print("a", output_stream=f"file://{self.target}")
        elif self.kind == "deep":
            tf.cond(tf.size(images) > 0, self._write, lambda: None)
        elif self.kind == "flat":
            self._write()
        return _red(images)

    def _write(self) -> None:
        tf.io.write_file(self.target, "it ran")


@pytest.mark.parametrize(
    ("kind", "operation"),
    [
        ("flat", "WriteFile"),
        ("deep", "WriteFile"),
        ("read", "ReadFile"),
        ("python", "EagerPyFunc"),
        ("print", "PrintV2"),
        ("table", "InitializeTableFromTextFileV2"),
    ],
)
def test_a_graph_that_does_more_than_compute_is_refused(kind, operation, tmp_path):
    tf.saved_model.save(Writes(tmp_path / "target", kind), str(tmp_path / "model"))
    with pytest.raises(UserError, match=rf"does more than compute: it has .*{operation}.* --trust_weights"):
        load_exported(tmp_path / "model", trust=False)


def test_it_runs_only_if_it_is_trusted(slides, tmp_path, capsys):
    target = tmp_path / "target"
    tf.saved_model.save(Writes(target, "deep"), str(tmp_path / "model"))
    command = words(tmp_path / "model", slides / "normal_001.tif", tmp_path / "out")
    assert main(command) == 2
    assert "it has WriteFile" in capsys.readouterr().err
    assert not target.exists()
    assert main([*command, "--trust_weights"]) == 0
    assert target.read_text() == "it ran"


def test_the_graph_of_an_old_tensorflow_counts_whole(tmp_path):
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        images = tf.compat.v1.placeholder(tf.uint8, (None, None, None, 3))
        with tf.control_dependencies([tf.io.write_file(str(tmp_path / "target"), "it ran")]):
            tumour = _red(images)
        tf.compat.v1.saved_model.simple_save(
            session, str(tmp_path / "model"), {"images": images}, {"probabilities": tumour}
        )
    with pytest.raises(UserError, match="it has WriteFile"):
        load_exported(tmp_path / "model", trust=False)


@pytest.mark.parametrize("content", [b"", b"\xff" * 99])
def test_a_damaged_graph_is_an_error_that_names_it(content, tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(content)
    with pytest.raises(UserError, match="cannot be loaded"):
        load_exported(tmp_path, trust=False)
