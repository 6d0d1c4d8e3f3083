"""Mamba (Gu & Dao 2023): sequences through a state space whose steps depend on the tokens."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from tprnet_jax.models.parts import EPSILON, TORCH_PARAMETERS, uniform_bias, uniform_kernel

STATES = 16  # Of each channel.
_TAPS = 4
_STEPS = (1e-3, 1e-1)  # Between which a layer's steps start.
# Channels whose states a CPU's core keeps in its cache: group after group takes a third of the time
# of all at once. Tokens of a chunk: 32 to 512 take about the same time.
_CPU_CHANNELS = 128
_CPU_TOKENS = 128
# States of a chunk elsewhere: large enough to occupy a GPU, and 16 MB in float32. Of shorter chunks
# than this many tokens, the states between them would need more memory than those within.
_STATES_AT_ONCE = 2**22
_LEAST_TOKENS = 64


class Mamba(nn.Module):
    """The Mamba layer, as `state-spaces/mamba` has it; float32 at least, whatever comes in.

    Twice as many channels as come in, a causal convolution of four tokens, the selective scan, a
    gate. Dense layers and the convolution start as in PyTorch, the steps log-uniform between 0.001
    and 0.1, the rates as -1 to -16 in each channel.

    Attributes:
        project: Whether a last product brings the channels back to those that came in.
    """

    project: bool = True

    @nn.compact
    def __call__(self, x):
        """Maps tokens `(batch, tokens, width)` to the same, or to `2 width` without `project`."""
        width = x.shape[-1]
        channels, rank = 2 * width, -(-width // 16)
        dense = functools.partial(nn.Dense, use_bias=False, kernel_init=uniform_kernel)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        x, gate = jnp.split(dense(2 * channels, name="in_proj")(x), 2, axis=-1)
        x = nn.silu(_CausalConv(name="conv1d")(x))
        selected = dense(rank + 2 * STATES, name="x_proj")(x)
        delta, b, c = jnp.split(selected, (rank, rank + STATES), axis=-1)
        steps = nn.Dense(channels, kernel_init=uniform_kernel, bias_init=_step_bias, name="dt_proj")
        rates = -jnp.exp(self.param("A_log", _log_rates, (STATES, channels)).astype(x.dtype))
        skip = self.param("D", nn.initializers.ones, (channels,)).reshape(1, 1, -1)
        y = selective_scan(nn.softplus(steps(delta)), rates, b, c, x) + skip * x
        y = y * nn.silu(gate)
        return dense(width, name="out_proj")(y) if self.project else y


class _CausalConv(nn.Module):
    """Each channel's weighted sum of a token and the three before it."""

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", uniform_kernel, (_TAPS, 1, x.shape[-1]))
        bias = self.param("bias", uniform_bias(_TAPS), x.shape[-1:])
        before = jnp.pad(x, ((0, 0), (_TAPS - 1, 0), (0, 0)))
        taps = [kernel[t, None] * before[:, t : t + x.shape[1]] for t in range(_TAPS)]
        return sum(taps) + bias.reshape(1, 1, -1)


def _step_bias(key, shape, dtype=jnp.float32):
    """The inverse of softplus, of steps log-uniform between two."""
    low, high = jnp.log(jnp.array(_STEPS, dtype))
    steps = jnp.exp(jax.random.uniform(key, shape, dtype, low, high))
    return steps + jnp.log(-jnp.expm1(-steps))


def _log_rates(key, shape, dtype=jnp.float32):
    return jnp.broadcast_to(jnp.log(jnp.arange(1, shape[0] + 1, dtype=dtype))[:, None], shape)


class MambaLayer(nn.Module):
    """Layer normalisation and `Mamba`, without a residual, of `(batch, tokens, width)`."""

    @nn.compact
    def __call__(self, x):
        """Returns the same shape and type."""
        return Mamba(name="mamba")(token_norm(name="norm")(x)).astype(x.dtype)


token_norm = functools.partial(nn.LayerNorm, epsilon=EPSILON, use_fast_variance=False)


def mamba_name(stem: str, path: tuple[str, ...]) -> str:
    """Name in PyTorch of a parameter at or below a layer, as of `("mamba", "dt_proj", "bias")`."""
    return ".".join([stem, *path[:-1], TORCH_PARAMETERS.get(path[-1], path[-1])])


@jax.jit  # A network has many of the same shapes, which are so traced once.
def selective_scan(
    delta: jax.Array, a: jax.Array, b: jax.Array, c: jax.Array, x: jax.Array
) -> jax.Array:
    """The selective scan (Gu & Dao 2023, algorithm 2).

    For each channel and state, from h = 0 before the first token,

        h_t = exp(delta_t a) h_(t-1) + delta_t b_t x_t
        y_t = sum over the states of c_t h_t

    On CPUs it goes token by token; elsewhere it takes a chunk of tokens at once, by an associative
    scan, for which a CPU needs ten times as long.

    Memory: for the gradient only the arguments are kept. During the computation there are also the
    states between chunks and those within one chunk at a time. On CPUs these are of 128 tokens and
    128 channels, and the former a 128th of all of one sequence; elsewhere they are in arrays of
    16 MB, or of 64 tokens of one sequence where that is more, and the former at most a 64th of all
    of so many sequences as a chunk has.

    Args:
        delta: Steps, positive, `(batch, tokens, channels)`.
        a: Rates, negative, `(states, channels)`.
        b: What of a token enters the states, `(batch, tokens, states)`.
        c: What of the states is seen, `(batch, tokens, states)`.
        x: Tokens, `(batch, tokens, channels)`.

    Returns:
        y, `(batch, tokens, channels)`.
    """
    return _scan(delta, a, b, c, x)


@jax.custom_vjp
def _scan(*arguments):
    return lax.platform_dependent(*arguments, cpu=scan_by_token, default=scan_by_chunk)


def _forward(*arguments):
    return _scan(*arguments), arguments


def _backward(arguments, gradient):
    def pullback(scan):
        return lambda gradient, *arguments: jax.vjp(scan, *arguments)[1](gradient)

    by_token, by_chunk = pullback(scan_by_token), pullback(scan_by_chunk)
    return lax.platform_dependent(gradient, *arguments, cpu=by_token, default=by_chunk)


_scan.defvjp(_forward, _backward)


def scan_by_token(delta, a, b, c, x):
    """`selective_scan` for CPUs: one sequence after the other, and of it some channels."""
    width = _even(x.shape[-1], _CPU_CHANNELS)

    def sequence(arrays):
        delta, b, c, x = arrays
        groups = [_cut(v.T, width).swapaxes(1, 2) for v in (a, delta, x)]
        y = lax.map(lambda group: _in_chunks(_by_token, _CPU_TOKENS, *group, b, c), groups)
        return y.swapaxes(0, 1).reshape(len(x), -1)[:, : x.shape[1]]

    return lax.map(sequence, (delta, b, c, x))


def scan_by_chunk(delta, a, b, c, x):
    """`selective_scan` for GPUs and TPUs: many sequences and all channels at once."""
    batch, tokens, _ = x.shape
    together = _even(batch, max(1, _STATES_AT_ONCE // (_LEAST_TOKENS * a.size)))
    length = _even(tokens, max(_LEAST_TOKENS, _STATES_AT_ONCE // (together * a.size)))

    @jax.checkpoint  # Else the gradient would keep the states between the chunks of all sequences.
    def sequence(arrays):
        delta, b, c, x = arrays
        return _in_chunks(_at_once, length, a, delta, x, b, c)

    return lax.map(sequence, (delta, b, c, x), batch_size=together)


def _even(total: int, most: int) -> int:
    """Length of the fewest pieces of a total that are no longer than `most`, if all are equal."""
    return -(-total // -(-total // most))


def _cut(rows: jax.Array, length: int) -> jax.Array:
    """Equal pieces of `(rows, ...)`, the last one filled up with zeros."""
    rows = jnp.pad(rows, ((0, -len(rows) % length), (0, 0)))
    return rows.reshape(-1, length, rows.shape[1])


def _in_chunks(scan, length: int, a, *arrays):
    """One sequence, `scan` by `scan`; after its end, a step of zero changes nothing."""
    chunks = [_cut(v, length) for v in arrays]
    _, y = lax.scan(jax.checkpoint(functools.partial(scan, a)), jnp.zeros_like(a), chunks)
    return y.reshape(-1, y.shape[-1])[: len(arrays[0])]


def _by_token(a, state, chunk):
    @jax.checkpoint
    def step(state, token):
        delta, x, b, c = token
        state = jnp.exp(delta[None] * a) * state + (delta * x)[None] * b[:, None]
        return state, (c[:, None] * state).sum(axis=0)

    return lax.scan(step, state, chunk)


def _at_once(a, state, chunk):
    delta, x, b, c = chunk
    decay = jnp.exp(delta[:, None] * a[None])
    entering = (delta * x)[:, None] * b[..., None]
    decay, states = lax.associative_scan(_joined, (decay, entering))
    states += decay * state[None]
    return states[-1], (c[..., None] * states).sum(axis=1)


def _joined(earlier, later):
    """Two maps of a state to decay * state + entering, one after the other, as one."""
    return later[0] * earlier[0], later[0] * earlier[1] + later[1]
