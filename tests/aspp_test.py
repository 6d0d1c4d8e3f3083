import functools

import jax
import numpy as np
import pytest
from jax import lax

from tprnet_jax.models.aspp import ASPP, AtrousConv
from tprnet_jax.models.parts import STATISTICS


@pytest.mark.parametrize(("size", "dilation"), [((7, 9), 2), ((5, 13), 6)])
def test_what_is_far_apart_is_convolved_as_by_xla(size, dilation):
    """Where some taps are outside, for some pixels or for all."""
    rng = np.random.default_rng(0)
    shapes = (2, *size, 4), (2, *size, 3), (3, 3, 3, 4)
    gradient, *arguments = (rng.normal(size=shape).astype(np.float32) for shape in shapes)

    def ours(x, kernel):
        return AtrousConv(4, dilation).apply({"params": {"kernel": kernel}}, x)

    def xlas(x, kernel):
        apart = (dilation, dilation)
        layout = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, kernel, (1, 1), (apart, apart), rhs_dilation=apart, dimension_numbers=layout
        )

    @functools.partial(jax.jit, static_argnums=0)
    def with_gradients(function, gradient, x, kernel):
        result, pullback = jax.vjp(function, x, kernel)
        return result, *pullback(gradient)

    found, expected = (with_gradients(f, gradient, *arguments) for f in (ours, xlas))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_a_single_image_is_trained_on_without_statistics_of_its_mean():
    """Its mean is one value a channel, normalised by what runs, which stays as it is."""
    net, image = ASPP(3, None), np.random.default_rng(0).random((1, 4, 5, 2)).astype(np.float32)
    rngs = {"dropout": jax.random.key(0)}

    def total(params):
        return net.apply({"params": params}, image, train=True, rngs=rngs).sum()

    shapes = jax.eval_shape(functools.partial(net.init, train=False), jax.random.key(0), image)
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes["params"])
    gradient = jax.jit(jax.grad(total))(params)
    for name in STATISTICS:
        assert not gradient["global_avg_pool_2"][name].any()
        assert gradient["bn1"][name].any()
