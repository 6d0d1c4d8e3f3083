import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from tprnet_jax import config
from tprnet_jax.method import optimiser
from tprnet_jax.models.networks import NETWORKS, has_auxiliary
from tprnet_jax.runtime.errors import UserError


def _optim(**fields):
    optim = config.default().optim
    optim.update(fields)
    return optim


def test_sgd_is_pytorchs_with_nesterov_momentum():
    optim = _optim(momentum=0.9, weight_decay=0.1, learning_rate=0.5)
    direction, rate = optimiser.direction(optim), optimiser.schedule(optim, 3, 1)
    params = jnp.array([1.0, -2.0, 3.0])
    state = direction.init(params)
    p, buffer = np.array([1.0, -2.0, 3.0]), np.zeros(3)
    for step, gradient in enumerate(np.array([[1, 2, -3], [0, 0.5, 1], [-4, 0, 0.25]])):
        descent, state = direction.update(jnp.asarray(gradient, jnp.float32), state, params)
        params = params - rate(step) * descent
        d = gradient + 0.1 * p
        buffer = 0.9 * buffer + d
        p = p - 0.5 * (1 - step / 3) ** 0.9 * (d + 0.9 * buffer)
        np.testing.assert_allclose(params, p, rtol=1e-5)


@pytest.mark.parametrize("beta", [0.999, 0.95])
def test_adamw_decays_apart_from_the_moments(beta):
    """Kingma and Ba's moments with 0.9, 0.999 and 1e-8; Loshchilov and Hutter's decay."""
    optim = _optim(name="adamw", weight_decay=0.1, second_momentum=beta)
    direction = optimiser.direction(optim)
    params = jnp.array([1.0, -2.0, 3.0])
    state, m, v = direction.init(params), np.zeros(3), np.zeros(3)
    for step, gradient in enumerate(np.array([[1, 2, -3], [0.5, -1, 1]]), start=1):
        descent, state = direction.update(jnp.asarray(gradient, jnp.float32), state, params)
        m, v = 0.9 * m + 0.1 * gradient, beta * v + (1 - beta) * gradient**2
        adam = (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - beta**step)) + 1e-8)
        np.testing.assert_allclose(descent, adam + 0.1 * np.asarray(params), rtol=1e-4)


def _newton_schulz(values):
    """What five iterations make of singular values."""
    values = values / np.sqrt((values**2).sum())
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return values


def test_newton_schulz_changes_the_singular_values_alone():
    """Of matrices of all shapes at once, some of which have as many columns, or rows, as others."""
    rng = np.random.default_rng(0)
    matrices = [rng.normal(size=shape) for shape in ((36, 6), (4, 9), (5, 5), (5, 12), (6, 6))]
    results = optimiser.orthogonal([jnp.asarray(matrix, jnp.float32) for matrix in matrices])
    for matrix, result in zip(matrices, results, strict=True):
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
        expected = left * _newton_schulz(values) @ right
        np.testing.assert_allclose(result, expected, atol=2e-5)
        assert ((_newton_schulz(values) > 0.6) & (_newton_schulz(values) < 1.3)).all()


def test_newton_schulz_of_nothing_is_nothing():
    (result,) = optimiser.orthogonal([jnp.zeros((4, 3))])
    np.testing.assert_array_equal(result, np.zeros((4, 3)))


def test_muon_makes_the_steps_of_kernels_orthogonal_and_adamw_the_rest():
    rng = np.random.default_rng(0)
    shapes = {"conv": {"kernel": (3, 3, 4, 6), "bias": (6,)}, "head": {"kernel": (1, 1, 6, 2)}}
    params, *gradients = (
        jax.tree.map(
            lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
            shapes,
            is_leaf=_is_shape,
        )
        for _ in range(3)
    )
    muon = optimiser.direction(_optim(name="muon", weight_decay=0.1))
    state, buffer = muon.init(params), np.zeros((36, 6))
    others = (("conv", "bias"), ("head", "kernel"))
    moments = {other: (0.0, 0.0) for other in others}
    for step, gradient in enumerate(gradients, start=1):
        descent, state = muon.update(gradient, state, params)
        kernel = np.asarray(gradient["conv"]["kernel"], np.float64).reshape(36, 6)
        buffer = 0.95 * buffer + kernel
        left, values, right = np.linalg.svd(kernel + 0.95 * buffer, full_matrices=False)
        expected = 0.2 * np.sqrt(36) * (left * _newton_schulz(values) @ right)
        expected = expected.reshape(3, 3, 4, 6) + 0.1 * params["conv"]["kernel"]
        np.testing.assert_allclose(descent["conv"]["kernel"], expected, atol=1e-4)
        for part, name in others:
            g = np.asarray(gradient[part][name], np.float64)
            m, v = moments[part, name]
            m, v = moments[part, name] = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            adam = (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
            expected = adam + 0.1 * params[part][name]
            np.testing.assert_allclose(descent[part][name], expected, rtol=1e-4, atol=1e-6)


LOGITS = {
    "unet": {"head"},
    "resunet": {"head"},
    "coanet": {"seg_branch_2", "connect_branch_2", "connect_branch_d1_2"},
    "dscnet": {"head"},
    "nnunet": {"head", "head_1", "head_2"},
    "umamba_bot": {"head", "head_1", "head_2"},
    "lkm_unet": {"head", "head_1", "head_2"},
}


@pytest.mark.parametrize("name", LOGITS)
def test_muon_leaves_the_logits_of_every_network_to_adamw(name):
    """Of kernels with four axes, Adam has squares of theirs alone.

    No other has as many outputs: 5 classes, and the 9 neighbours of CoANet.
    """
    auxiliary = {"auxiliary": True} if has_auxiliary(name) else {}
    net = NETWORKS[name](channels=(4, 8, 16, 4), classes=5, **auxiliary)
    image = jnp.zeros((1, 32, 32, 1))
    params = jax.eval_shape(net.init, jax.random.key(0), image)["params"]
    kernels = {path: p for path, p in flatten_dict(params).items() if p.ndim == 4}
    logits = {path for path, kernel in kernels.items() if kernel.shape[-1] in (5, 9)}
    assert {path[-2] for path in logits} == LOGITS[name]
    state = jax.eval_shape(optimiser.direction(_optim(name="muon")).init, params)
    squares = flatten_dict(state.inner_states["other"].inner_state[0].nu)
    assert {path for path in kernels if not isinstance(squares[path], optax.MaskedNode)} == logits


def _is_shape(value):
    return isinstance(value, tuple)


def test_poly_is_constant_within_an_epoch():
    rate = jax.jit(optimiser.schedule(_optim(), epochs=5, steps_per_epoch=7))
    for step in range(35):
        expected = 0.01 * (1 - step // 7 / 5) ** 0.9
        assert rate(jnp.int32(step)) == pytest.approx(expected, rel=1e-6)


def test_cosine_warms_up_and_ends_at_zero():
    optim = _optim(schedule="cosine", warmup=2.0)
    rate = optimiser.schedule(optim, epochs=10, steps_per_epoch=5)
    quarter = 0.005 * (1 + math.sqrt(0.5))
    values = {0: 0, 1: 0.001, 5: 0.005, 10: 0.01, 20: quarter, 30: 0.005, 40: 0.01 - quarter, 50: 0}
    for step, value in values.items():
        assert rate(step) == pytest.approx(value, rel=1e-5, abs=1e-9)


def test_cosine_without_warm_up_starts_at_its_peak():
    rate = optimiser.schedule(_optim(schedule="cosine"), epochs=10, steps_per_epoch=5)
    assert [float(rate(step)) for step in (0, 25, 50)] == pytest.approx([0.01, 0.005, 0], abs=1e-9)


def test_a_warm_up_as_long_as_the_training_is_named():
    with pytest.raises(UserError, match=r"config\.optim\.warmup is 3"):
        optimiser.schedule(_optim(schedule="cosine", warmup=3.0), epochs=3, steps_per_epoch=5)


@pytest.mark.parametrize(
    ("fields", "rates"),
    [
        ({"schedule": "poly", "power": 2.0}, [1, 1, (39 / 40) ** 2, (20 / 40) ** 2]),
        ({"schedule": "constant"}, [1, 1, 1, 1]),
        ({"schedule": "tenths"}, [1, 1, 1, 0.1]),
    ],
)
def test_schedules_by_epoch(fields, rates):
    rate = optimiser.schedule(_optim(learning_rate=1.0, **fields), 40, 2)
    found = [rate(step) for step in (0, 1, 2, 40)]  # The first, first, second and 21st epoch.
    np.testing.assert_allclose(found, rates, rtol=1e-5)


def test_what_was_compiled_for_a_configuration_serves_an_equal_one():
    """Steps are compiled for one direction and one schedule, as static arguments."""
    for make in (optimiser.direction, lambda optim: optimiser.schedule(optim, 40, 2)):
        assert make(_optim()) is make(_optim())
        assert make(_optim()) is not make(_optim(weight_decay=0.5))
