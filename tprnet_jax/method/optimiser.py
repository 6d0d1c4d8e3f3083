"""Optimisers and learning-rate schedules, by the names that configurations use."""

import functools
import re
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict, FrozenConfigDict

from tprnet_jax.runtime.errors import UserError

SCHEDULES = ("poly", "cosine", "constant", "tenths")
# Names of the layers that give logits, those of auxiliary outputs too: CoANet's, and all others'.
_LOGITS = re.compile(r"(seg_branch|connect_branch(_d1)?)_2|head(_\d+)?")


def _once(make: Callable) -> Callable:
    """Has `make` called once for equal arguments: what is compiled for its result serves again."""
    made = functools.cache(make)

    @functools.wraps(make)
    def call(config: ConfigDict, *rest, **named):
        return made(FrozenConfigDict(config), *rest, **named)

    return call


@_once
def direction(config: ConfigDict) -> optax.GradientTransformation:
    """What turns gradients into a direction of descent; the learning rate is applied after it.

    Args:
        config: `config.optim`, its `name` "sgd", "adamw" or "muon".
    """
    if config.name == "muon":
        return _muon(config.weight_decay)
    decay = optax.add_decayed_weights(config.weight_decay)
    if config.name == "sgd":
        # PyTorch's order: the decay enters the momentum.
        return optax.chain(decay, optax.trace(config.momentum, nesterov=True))
    return optax.chain(optax.scale_by_adam(b2=config.second_momentum), decay)


def _muon(decay: float) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) for kernels of images' convolutions, AdamW for all else.

    A kernel is a matrix of what it sees by its features. Those of the logits are left to AdamW, see
    `_LOGITS`, as are all that have not four axes: the dense ones and the causal convolutions of
    Mamba layers, and those of CoANet's attention. Muon's steps are as long as AdamW's usually are
    (Liu et al. 2025), so that both take one learning rate.
    """

    def which(path, parameter):
        is_kernel = parameter.ndim == 4 and not _LOGITS.fullmatch(path[-2].key)
        return "kernel" if is_kernel else "other"

    decayed = optax.add_decayed_weights(decay)
    direction = {
        "kernel": optax.chain(
            optax.trace(0.95, nesterov=True),
            optax.stateless(lambda kernels, _: _orthogonal_steps(kernels)),
            decayed,
        ),
        "other": optax.chain(optax.scale_by_adam(), decayed),
    }
    return optax.partition(direction, lambda params: jax.tree.map_with_path(which, params))


def _orthogonal_steps(kernels):
    """The steps of a tree of kernels made orthogonal, 0.2 long for each number in the mean."""
    leaves, structure = jax.tree.flatten(kernels)
    matrices = [kernel.reshape(-1, kernel.shape[-1]) for kernel in leaves]
    steps = [
        (0.2 * max(matrix.shape) ** 0.5 * found).reshape(kernel.shape)
        for kernel, matrix, found in zip(leaves, matrices, orthogonal(matrices), strict=True)
    ]
    return structure.unflatten(steps)


def orthogonal(matrices: Sequence[jax.Array]) -> list[jax.Array]:
    """Matrices with singular values between about 0.7 and 1.2, by Newton and Schulz's iteration.

    Each of five iterations takes a matrix X to X (a + b X'X + c (X'X)^2), with Jordan's a, b and c.
    The factors are all polynomials of the first X'X, so that the iteration is over that small
    matrix; over X itself, as in Optax, it takes six times as long on a CPU. Those of one size pass
    it together: a GPU would wait for a thousand small products in turn.

    Args:
        matrices: `(rows, columns)` each.
    """
    tall = [matrix.T if matrix.shape[0] < matrix.shape[1] else matrix for matrix in matrices]
    tall = [matrix / (jnp.linalg.norm(matrix) + 1e-8) for matrix in tall]
    grams, factors = [_product(matrix.T, matrix) for matrix in tall], {}
    sizes = [len(gram) for gram in grams]
    for size in set(sizes):
        alike = [index for index, other in enumerate(sizes) if other == size]
        together = jax.vmap(_factor)(jnp.stack([grams[index] for index in alike]))
        factors.update(zip(alike, together, strict=True))
    found = [_product(matrix, factors[index]) for index, matrix in enumerate(tall)]
    return [f.T if f.shape != m.shape else f for f, m in zip(found, matrices, strict=True)]


def _factor(gram: jax.Array) -> jax.Array:
    """What to multiply X by, from X'X: both `(columns, columns)`."""
    one = jnp.eye(len(gram), dtype=gram.dtype)
    a, b, c = 3.4445, -4.7750, 2.0315
    whole = one
    for _ in range(5):
        factor = a * one + b * gram + c * _product(gram, gram)
        whole = _product(whole, factor)
        gram = _product(factor, _product(gram, factor))
    return whole


def _product(left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)


@_once
def schedule(config: ConfigDict, epochs: int, steps_per_epoch: int) -> Callable:
    """Learning rate by step.

    "poly": `learning_rate * (1 - epoch / epochs) ** power`, constant within an epoch, as nnU-Net
    and the released TPRNet have it. "cosine": a linear warm-up of `warmup` epochs from 0, then
    half a cosine to 0, both by step. "constant": always the same. "tenths": a tenth of it every 20
    epochs.

    Args:
        config: `config.optim`, its `schedule` one of `SCHEDULES`.
        epochs: Length of the training in epochs.
        steps_per_epoch: Steps an epoch has.

    Raises:
        UserError: The warm-up leaves no step after it.
    """
    if config.schedule == "cosine":
        return _cosine(config, epochs, steps_per_epoch)
    by_epoch = {
        "poly": optax.polynomial_schedule(config.learning_rate, 0.0, config.power, epochs),
        "constant": optax.constant_schedule(config.learning_rate),
        "tenths": optax.exponential_decay(config.learning_rate, 20, 0.1, staircase=True),
    }[config.schedule]
    return lambda step: by_epoch(step // steps_per_epoch)


def _cosine(config: ConfigDict, epochs: int, steps_per_epoch: int) -> Callable:
    warmup, steps = round(config.warmup * steps_per_epoch), epochs * steps_per_epoch
    if warmup >= steps:
        raise UserError(
            f"config.optim.warmup is {config.warmup}, but there are only {epochs} epochs; make it "
            "smaller"
        )
    return optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, steps)
