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

    `forward`: of one forward pass, by `sent_forward`. `step`: those of a step of patches of any size, which tells how
    often each exchange takes place, forward and backward, and which share of its channels goes each time: gradients
    of as many rows go back, in parts where a block's channels are computed in parts.
    """
    sent = count = 0
    for name, sizes in forward.items():
        all_sizes = [*step[name], *step.get(f"{name}_back", ())]  # the images have no gradient
        sent += round(sum(sizes) * sum(all_sizes) / step[name][0]) if any(sizes) else 0
        count += len(all_sizes)
    return sent, count
