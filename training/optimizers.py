"""The optimizers of `--optimizer`, in Keras's older form, whose Adam is one fused kernel a variable.

Weight decay is decoupled from the gradient (Loshchilov and Hutter, arXiv 1711.05101) and for kernels only, not
for biases and batch norm. Clipping is to a global norm; Keras does it when the gradients are applied, so after
Horovod has reduced them.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from training.choices import OPTIMIZERS


def make_optimizer(
    name: str, learning_rate: float, weight_decay: float | None = None, clip_norm: float = 0.0
) -> tf.keras.optimizers.legacy.Optimizer:
    """Return optimizer `name` of OPTIMIZERS. `weight_decay` None takes its usual one; `clip_norm` 0 does not clip."""
    common: dict[str, Any] = {"learning_rate": learning_rate}
    if clip_norm:
        common["global_clipnorm"] = clip_norm
    decay = OPTIMIZERS[name] if weight_decay is None else weight_decay
    if name == "adam":
        return tf.keras.optimizers.legacy.Adam(**common)
    if name == "adamw":
        return AdamW(weight_decay=decay, **common)
    if name == "sgd":
        return SGDW(weight_decay=decay, momentum=0.9, nesterov=True, **common)
    return LAMB(weight_decay=decay, **common)


def _is_kernel(variable: tf.Variable) -> bool:
    return "kernel" in variable.name


class _Decayed:
    """Mixin that subtracts learning rate × weight decay × kernel from each kernel before the update."""

    def __init__(self, weight_decay: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.weight_decay = weight_decay

    def get_config(self) -> dict[str, Any]:  # Horovod makes its optimizer from it
        return {**super().get_config(), "weight_decay": self.weight_decay}  # type: ignore[misc]

    def _rate(self, variable: tf.Variable) -> tf.Tensor:
        return self._decayed_lr(variable.dtype.base_dtype)  # type: ignore[attr-defined]

    def _resource_apply_dense(self, grad: tf.Tensor, var: tf.Variable, apply_state: Any = None) -> Any:
        if self.weight_decay and _is_kernel(var):
            var.assign_sub(self._rate(var) * self.weight_decay * var)
        return super()._resource_apply_dense(grad, var, apply_state)  # type: ignore[misc]


class AdamW(_Decayed, tf.keras.optimizers.legacy.Adam):
    """Adam with decoupled weight decay."""


class SGDW(_Decayed, tf.keras.optimizers.legacy.SGD):
    """Stochastic gradient descent with decoupled weight decay."""


class LAMB(_Decayed, tf.keras.optimizers.legacy.Adam):
    """Layer-wise adaptive moments for large batches (You et al., arXiv 1904.00962, algorithm 2).

    The step of a kernel is as long as learning rate × its norm; other variables take Adam's.
    """

    def _resource_apply_dense(self, grad: tf.Tensor, var: tf.Variable, apply_state: Any = None) -> Any:
        dtype = var.dtype.base_dtype
        beta_1, beta_2 = self._get_hyper("beta_1", dtype), self._get_hyper("beta_2", dtype)
        count = tf.cast(self.iterations + 1, dtype)
        m, v = self.get_slot(var, "m"), self.get_slot(var, "v")
        m.assign(beta_1 * m + (1 - beta_1) * grad)
        v.assign(beta_2 * v + (1 - beta_2) * tf.square(grad))
        update = m / (1 - beta_1**count) / (tf.sqrt(v / (1 - beta_2**count)) + self.epsilon)
        if _is_kernel(var):
            update += self.weight_decay * var
            lengths = tf.norm(var), tf.norm(update)
            usable = tf.logical_and(lengths[0] > 0, lengths[1] > 0)
            update *= tf.where(usable, lengths[0] / tf.where(usable, lengths[1], 1.0), 1.0)
        return var.assign_sub(self._rate(var) * update)
