import json

import golden_baselines
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from tprnet_jax.models import mamba
from tprnet_jax.models.parts import torch_axes

# ---- The scan ------------------------------------------------------------------------------------


def _scanned(delta, a, b, c, x):
    """The recurrence of the docstring, one token after the other."""
    state, y = np.zeros((len(x), *a.shape)), np.zeros_like(x)
    for t in range(x.shape[1]):
        entering = b[:, t, :, None] * (delta * x)[:, t, None]
        state = np.exp(delta[:, t, None] * a) * state + entering
        y[:, t] = np.sum(c[:, t, :, None] * state, axis=1)
    return y


def _gradients(delta, a, b, c, x, gradient):
    """By the chain rule, from the last token to the first."""
    states, state = [], np.zeros((len(x), *a.shape))
    for t in range(x.shape[1]):
        states.append(state)  # Before token t.
        entering = b[:, t, :, None] * (delta * x)[:, t, None]
        state = np.exp(delta[:, t, None] * a) * state + entering
    found = [np.zeros_like(v) for v in (delta, a, b, c, x)]
    by_state = np.zeros_like(state)
    for t in reversed(range(x.shape[1])):
        step, token, enters = delta[:, t, None], x[:, t, None], b[:, t, :, None]
        decay = np.exp(step * a)
        after = decay * states[t] + enters * step * token
        by_state += c[:, t, :, None] * gradient[:, t, None]
        found[0][:, t] = (by_state * (a * decay * states[t] + enters * token)).sum(1)
        found[1] += (by_state * step * decay * states[t]).sum(0)
        found[2][:, t] = (by_state * step * token).sum(2)
        found[3][:, t] = (after * gradient[:, t, None]).sum(2)
        found[4][:, t] = (by_state * step * enters).sum(1)
        by_state = by_state * decay
    return found


def _arguments(batch, tokens, channels, states):
    rng = np.random.default_rng(0)
    delta = np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), (batch, tokens, channels)))
    a = -rng.uniform(1, 16, (states, channels))
    b, c = rng.normal(size=(2, batch, tokens, states))
    return delta, a, b, c, rng.normal(size=(batch, tokens, channels))


def _assert_close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("scan", [mamba.selective_scan, mamba.scan_by_chunk])
def test_scan_and_gradient_against_a_sequential_one(monkeypatch, scan):
    """Chunks of 10 tokens, of 4 channels or 2 sequences, of which the last are not full."""
    monkeypatch.setattr(mamba, "_CPU_TOKENS", 10)
    monkeypatch.setattr(mamba, "_CPU_CHANNELS", 4)
    monkeypatch.setattr(mamba, "_STATES_AT_ONCE", 10 * 2 * 3 * 7)
    monkeypatch.setattr(mamba, "_LEAST_TOKENS", 10)
    arguments = _arguments(3, 37, 7, 3)
    gradient = np.random.default_rng(1).normal(size=arguments[-1].shape)

    @jax.jit
    def both(gradient, *arguments):
        y, pullback = jax.vjp(scan, *arguments)
        return y, pullback(gradient)

    single = [v.astype(np.float32) for v in (gradient, *arguments)]
    y, gradients = both(*single)
    _assert_close(y, _scanned(*arguments))
    for found, expected in zip(gradients, _gradients(*arguments, gradient), strict=True):
        _assert_close(found, expected)


def test_many_sequences_need_no_more_memory_at_once():
    """The states between chunks of one token of all sequences would be 2 GB."""
    shapes = [(8192, 64, 64), (16, 64), (8192, 64, 16), (8192, 64, 16), (8192, 64, 64)]
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]

    def both(gradient, *arguments):
        return jax.vjp(mamba.scan_by_chunk, *arguments)[1](gradient)

    needed = jax.jit(both).lower(arguments[-1], *arguments).compile().memory_analysis()
    assert needed.temp_size_in_bytes < 0.5e9


def test_a_long_scan_keeps_its_arguments_alone():
    """The states of 65,536 tokens would be sixteen times as large."""
    shapes = [(1, 65536, 4), (16, 4), (1, 65536, 16), (1, 65536, 16), (1, 65536, 4)]
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    pullback = jax.eval_shape(lambda *a: jax.vjp(mamba.selective_scan, *a)[1], *arguments)
    kept = sum(leaf.size for leaf in jax.tree.leaves(pullback))
    assert kept == sum(np.prod(shape) for shape in shapes)


# ---- The layer -----------------------------------------------------------------------------------

UNITS = json.loads((golden_baselines.FOLDER / "golden_units.json").read_text())["mamba"]
KINDS = {"A_log": "A_log", "D": "D", "conv1d.bias": "bias", "dt_proj.bias": "dtbias"}


def _shapes(layer, width):
    tokens = jax.ShapeDtypeStruct((1, 3, width), jnp.float32)
    return flatten_dict(jax.eval_shape(layer.init, jax.random.key(0), tokens)["params"])


def _random_params(layer, width):
    rng = np.random.default_rng(0)
    shapes = _shapes(layer, width)
    return unflatten_dict({path: rng.normal(0, 0.5, v.shape) for path, v in shapes.items()})


def _golden_params(shapes, tensors):
    state = {
        name: golden_baselines.filled(name, shape, KINDS.get(name, "w"), None)
        for name, shape in tensors
    }
    params = {
        path: state.pop(mamba.mamba_name("layer", path).removeprefix("layer.")) for path in shapes
    }
    assert not state
    return unflatten_dict(
        {path: v.transpose(torch_axes(path, v.ndim)) for path, v in params.items()}
    )


@pytest.mark.parametrize(("unit", "tokens", "width"), [("d8_L6", 6, 8), ("d40_L11", 11, 40)])
def test_layer_and_gradient_are_the_official_ones(unit, tokens, width):
    facts, layer = UNITS[unit], mamba.Mamba()
    x = golden_baselines.values("mamba.input", (2, tokens, width)).astype(np.float32)
    shapes = _shapes(layer, width)
    params = _golden_params(shapes, facts["tensors"])
    assert jax.tree.map(np.shape, params) == unflatten_dict({p: v.shape for p, v in shapes.items()})
    weights = golden_baselines.values("cot", x.shape)

    def loss(params):
        y = layer.apply({"params": params}, x)
        return (y * weights).mean(), y

    gradients, y = jax.jit(jax.grad(loss, has_aux=True))(jax.tree.map(jnp.float32, params))
    found = np.ravel(y)[np.array(facts["out"]["flat_index"])]
    np.testing.assert_allclose(found, facts["out"]["value"], atol=1e-6)
    np.testing.assert_allclose(y[1, -1, :8], facts["last_token_batch1"], atol=1e-6)
    for path, gradient in flatten_dict(gradients).items():
        name = mamba.mamba_name("layer", path).removeprefix("layer.")
        np.testing.assert_allclose(np.linalg.norm(gradient), facts["grad_l2"][name], rtol=1e-4)


def test_the_last_product_can_be_left_out():
    x = np.random.default_rng(0).normal(size=(2, 5, 4)).astype(np.float32)
    params = _random_params(mamba.Mamba(), 4)

    @jax.jit
    def both(params):
        return [mamba.Mamba(project).apply({"params": params}, x) for project in (True, False)]

    projected, found = both(params)
    kernel = params["out_proj"]["kernel"]
    np.testing.assert_allclose(found @ kernel, projected, atol=1e-6)


def test_parameters_of_a_layer():
    """Of width 512, by the table of the official modules; 1,024 are of the normalisation."""
    assert sum(leaf.size for leaf in _shapes(mamba.MambaLayer(), 512).values()) == 1_695_744


def test_how_a_layer_starts():
    params = jax.jit(mamba.Mamba().init)(jax.random.key(0), jnp.zeros((1, 1, 64)))["params"]
    rates = np.exp(params["A_log"])
    np.testing.assert_allclose(rates, np.repeat(np.arange(1, 17)[:, None], 128, 1), rtol=1e-6)
    np.testing.assert_array_equal(params["D"], np.ones(128))
    steps = np.log10(np.logaddexp(0, np.asarray(params["dt_proj"]["bias"], np.float64)))
    assert -3.001 < steps.min() < -2.9
    assert -1.1 < steps.max() < -0.999
    np.testing.assert_allclose(steps.mean(), -2, atol=4 * 2 / np.sqrt(12 * 128))
    for name, fan_in in (("in_proj", 64), ("conv1d", 4), ("dt_proj", 4), ("out_proj", 128)):
        largest = np.abs(params[name]["kernel"]).max()
        assert 0.95 < largest * np.sqrt(fan_in) <= 1


def test_a_layer_computes_in_float32_and_returns_what_it_was_given():
    layer, x = mamba.MambaLayer(), np.random.default_rng(0).normal(size=(1, 5, 4))
    half = jnp.asarray(x, jnp.bfloat16)
    params = _random_params(layer, 4)

    @jax.jit
    def both(params):
        return [layer.apply({"params": params}, v) for v in (half, half.astype(jnp.float32))]

    found, expected = both(params)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, expected.astype(jnp.bfloat16))
