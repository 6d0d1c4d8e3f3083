import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tprnet_jax.models.parts import PACE, BatchNorm, Conv3, upsample_bilinear, upsample_nearest


def _batch_norm(train, x, **params):
    defaults = {"scale": 1.0, "bias": 0.0, "mean": 0.0, "var": 1.0}
    params = {name: jnp.array([params.get(name, value)]) for name, value in defaults.items()}
    return BatchNorm().apply({"params": params}, x, train)


def test_batch_norm_in_training_takes_the_statistics_of_the_batch():
    x = jnp.array([1.0, 3.0, 5.0, 7.0]).reshape(2, 2, 1, 1)  # Mean 4, variance 5.
    y = _batch_norm(True, x, scale=2.0, bias=1.0, mean=100.0, var=100.0)
    np.testing.assert_allclose(y.ravel(), 1 + 2 * np.array([-3, -1, 1, 3]) / 5**0.5, rtol=1e-5)


def test_batch_norm_in_evaluation_takes_the_running_statistics():
    x = jnp.array([1.0, 3.0]).reshape(1, 2, 1, 1)
    y = _batch_norm(False, x, scale=2.0, bias=1.0, mean=2.0, var=4.0)
    np.testing.assert_allclose(y.ravel(), [0, 2], atol=1e-5)


def test_batch_norm_has_the_gradient_of_its_formula_and_the_distance_of_the_statistics():
    rng = np.random.default_rng(0)
    x, weight = (rng.normal(3, 2, (2, 4, 5, 3)).astype(np.float32) for _ in range(2))
    params = BatchNorm().init(jax.random.key(0), x)["params"]

    def ours(params, x):
        return (weight * BatchNorm().apply({"params": params}, x, True)).sum()

    def flax(params, x):
        norm = nn.BatchNorm(use_running_average=False, epsilon=1e-5, use_fast_variance=False)
        variables = {"params": {name: params[name] for name in ("scale", "bias")}}
        return (weight * norm.apply(variables, x, mutable="batch_stats")[0]).sum()

    gradient, by_x = jax.grad(ours, (0, 1))(params, x)
    expected, expected_by_x = jax.grad(flax, (0, 1))(params, x)
    np.testing.assert_allclose(by_x, expected_by_x, atol=1e-5)
    for name in ("scale", "bias"):
        np.testing.assert_allclose(gradient[name], expected[name], rtol=1e-4)
    np.testing.assert_allclose(gradient["mean"], 0 - x.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(gradient["var"], 1 - x.var((0, 1, 2)), rtol=1e-4)


def test_one_value_a_channel_is_normalised_as_in_evaluation_and_moves_nothing():
    x = jnp.full((1, 1, 1, 1), 3.0)
    params = {"scale": 2.0, "bias": 1.0, "mean": 1.0, "var": 4.0}
    assert _batch_norm(True, x, **params).item() == pytest.approx(1 + 2 * (3 - 1) / 2, rel=1e-5)
    gradient = jax.grad(lambda mean: _batch_norm(True, x, **params | {"mean": mean}).sum())(1.0)
    assert gradient == 0


@pytest.mark.parametrize("dilation", [2, 3])
def test_a_dilated_convolution_is_one_with_zeros_in_its_kernel(dilation):
    rng = np.random.default_rng(0)
    x, kernel, bias = (
        rng.normal(size=size).astype(np.float32) for size in ((2, 7, 10, 3), (3, 3, 3, 4), (4,))
    )
    conv = Conv3(4, dilation=dilation)
    found = conv.apply({"params": {"kernel": kernel, "bias": bias}}, x)
    wide = np.zeros((2 * dilation + 1, 2 * dilation + 1, 3, 4), np.float32)
    wide[::dilation, ::dilation] = kernel
    expected = nn.Conv(4, wide.shape[:2]).apply({"params": {"kernel": wide, "bias": bias}}, x)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_pace_of_the_running_statistics_is_pytorchs_momentum():
    assert PACE == 0.1


@pytest.mark.parametrize("side", [1, 2, 5])
def test_bilinear_upsampling_puts_corner_on_corner(side):
    x = np.arange(side, dtype=np.float32)
    found = upsample_bilinear(jnp.array(x).reshape(1, side, 1, 1))[0, :, 0, 0]
    np.testing.assert_allclose(found, np.linspace(0, side - 1, 2 * side), atol=1e-6)


def test_nearest_upsampling_makes_squares():
    x = jnp.array([[1, 2], [3, 4]]).reshape(1, 2, 2, 1)
    expected = [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]
    np.testing.assert_array_equal(upsample_nearest(x)[0, :, :, 0], expected)
