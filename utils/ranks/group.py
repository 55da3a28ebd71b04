"""The ranks that share one patch, and their exchange of rows by Horovod."""

from __future__ import annotations

import re
import weakref
from collections import Counter
from collections.abc import Sequence, Sized
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2

from utils.ranks.patch_group import PatchGroup

try:
    import horovod.tensorflow as hvd
except ImportError:  # a group of one needs none
    hvd = None


@dataclass(frozen=True)
class Group(PatchGroup):
    """A group with Horovod's process set for it."""

    process_set: Any = None  # Horovod's
    # How often a name was used in a graph; so a layer that runs again in the same graph gets another one.
    _names: Any = field(default_factory=weakref.WeakKeyDictionary, compare=False, repr=False)

    def counted(self, images: Sized) -> int:
        """Return how many images this rank counts of a batch: the first rank counts those that all share."""
        return len(images) if self.is_first else 0

    def alltoall(self, x: tf.Tensor, sends: Sequence[int], receives: Sequence[int], name: str) -> tf.Tensor:
        """Collective: send `sends[k]` rows (the first axis) of `x` to each rank k, and get `receives[k]` rows from it.

        Return what comes, by rank. All ranks of the group trace the same calls in the same order, for Horovod knows
        them by their names.
        """
        name = self._unique(name)
        # Two exchanges that send the same are not the same one, for others may send something else in each of them; but
        # TensorFlow's optimizer of graphs would put them together, as Horovod's operations have no attribute of a name.
        attributes = {"_exchange": attr_value_pb2.AttrValue(s=name.encode())}
        same = {tf.bfloat16: tf.uint16}.get(x.dtype, x.dtype)  # Horovod knows no bfloat16
        with tf.compat.v1.get_default_graph()._attr_scope(attributes):
            got, _ = hvd.alltoall(
                x if same == x.dtype else tf.bitcast(x, same),
                splits=tf.constant(sends, tf.int32),
                name=name,
                ignore_name_scope=True,
                process_set=self.process_set,
            )
        got = got if same == x.dtype else tf.bitcast(got, x.dtype)
        return tf.ensure_shape(got, [sum(receives), *x.shape[1:]])

    def _unique(self, name: str) -> str:
        """Return a name that was not used yet in the graph that is being traced."""
        used = self._names.setdefault(tf.compat.v1.get_default_graph(), Counter())
        name = re.sub(r"[^A-Za-z0-9_.]", ".", name)
        used[name] += 1
        return f"rows.{name}.{used[name]}"
