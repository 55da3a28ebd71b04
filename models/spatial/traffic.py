"""What a rank sends to the others that share its patches, counted from the network without computing it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tensorflow as tf
import tf_keras as keras

from models.spatial.network import spatial_runner
from utils.ranks.lone_member import LoneMember

Sent = Mapping[str, Sequence[int]]  # bytes of each exchange, by the name of the exchange


def sent_forward(model: keras.Model, img_size: int, batch_size: int, ranks_per_patch: int) -> Sent:
    """Return what a rank with neighbours on both sides sends in a forward pass of a training step."""
    member = LoneMember.inside(ranks_per_patch)
    spatial = spatial_runner(model, img_size, member)
    if spatial is None:
        return {}
    rows = member.strip(img_size).rows.height
    images = tf.TensorSpec((batch_size, rows, img_size, 3), tf.float32)
    tf.function(lambda x: spatial(model, x, True), autograph=False).get_concrete_function(images)
    return dict(member.sent)


def sent_in_step(forward: Sent, step: Sent) -> tuple[int, int]:
    """Return how many bytes a rank sends in a step, and in how many exchanges. Scalars of the loss are left out.

    `forward`: of one forward pass, by `sent_forward`. `step`: those of a step of patches of any size, of which the
    names alone are looked at: they tell how often each exchange takes place. Backward the gradients of as many rows
    go back once, if in parts where the channels of a block are computed in parts.
    """
    sent = count = 0
    for name, sizes in forward.items():
        back = step.get(f"{name}_back", ())  # the images have no gradient
        sent += sum(sizes) * (len(step[name]) + bool(back))
        count += len(step[name]) + len(back)
    return sent, count
