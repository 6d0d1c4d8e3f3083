"""What compared networks are checked for, whichever they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from tprnet_jax.models import weights
from tprnet_jax.models.parts import STATISTICS


def counts(net) -> dict[str, int]:
    """Parameters of each module, without the running statistics."""
    found = {}
    for path, leaf in flatten_dict(_shapes(net)).items():
        if path[-1] not in STATISTICS:
            found[path[0]] = found.get(path[0], 0) + leaf.size
    return found


def random_params(net) -> dict:
    """All of them random, so that none can be left out unnoticed; from NumPy, which is quick."""
    rng = np.random.default_rng(0)
    params = {}
    for path, leaf in flatten_dict(_shapes(net)).items():
        mean = 1 if path[-1] in ("scale", "var") else 0
        deviation = 0.3 if path[-1] in ("kernel", "bias") else 0.1
        params[path] = rng.normal(mean, deviation, leaf.shape).astype(np.float32)
    return unflatten_dict(params)


def _shapes(net) -> dict:
    return jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 16, 16, 1)))["params"]


def assert_odd_images_apart(net, multiple: int) -> None:
    """An image is padded at the bottom and right, and treated alike whatever it is beside."""
    params = {"params": random_params(net)}
    images = np.random.default_rng(1).random((2, 2 * multiple, 3 * multiple, 1), np.float32)
    small = images[:, 1 - multiple :, 1 : -multiple + 1]
    height, width = small.shape[1:3]
    border = ((0, 0), (0, -height % multiple), (0, -width % multiple), (0, 0))
    padded = np.pad(small, border, mode="edge")
    apply = jax.jit(net.apply)
    together = apply(params, small)
    assert (together.shape, together.dtype) == ((2, height, width, 2), np.float32)
    for image, logits in zip(padded, together, strict=True):
        alone = apply(params, image[None])[0, :height, :width]
        np.testing.assert_allclose(logits, alone, atol=1e-4)


def assert_bfloat16_gives_float32(net) -> None:
    image = np.random.default_rng(1).random((1, 16, 16, 1), np.float32)
    logits = jax.jit(net.clone(dtype="bfloat16").apply)({"params": random_params(net)}, image)
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()


def assert_goes_to_pytorch_and_back(net) -> None:
    params = {"global": random_params(net)}
    state = weights.to_torch({"global": net}, params)
    jax.tree.map(np.testing.assert_array_equal, weights.from_torch({"global": net}, state), params)


def assert_starts_as_pytorch(net, monkeypatch) -> None:
    """Uniform up to 1 / sqrt(fan-in), which PyTorch counts over all axes of a weight but the first.

    Each random number is replaced by the largest that it can be. Normalisations start as the
    identity.
    """

    def largest(key, shape, dtype, minval, maxval):
        assert minval == -maxval
        return jnp.full(shape, maxval, dtype)

    monkeypatch.setattr(jax.random, "uniform", largest)
    params = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]
    state = weights.to_torch({"global": net}, {"global": params})
    for name in state.keys() - net.torch_idle().keys():
        owner, _, kind = name.rpartition(".")
        fan = np.prod(state[f"{owner}.weight"].shape[1:])
        is_norm = state[f"{owner}.weight"].ndim == 1
        expected = kind in ("weight", "running_var") if is_norm else 1 / np.sqrt(fan)
        np.testing.assert_allclose(state[name], expected, rtol=1e-6, err_msg=name)


def assert_gradient_is_finite_differences(net) -> None:
    """In training, by eight numbers anywhere in the parameters; running statistics have none."""
    rng = np.random.default_rng(2)
    with jax.enable_x64(True):
        params = {path: np.float64(leaf) for path, leaf in flatten_dict(random_params(net)).items()}
        fixed = {path: leaf for path, leaf in params.items() if path[-1] in STATISTICS}
        free, unravel = jax.flatten_util.ravel_pytree(
            {path: leaf for path, leaf in params.items() if path not in fixed}
        )
        image, weight = rng.random((1, 8, 8, 1)), rng.normal(size=(1, 8, 8, 2))

        @jax.jit
        @jax.value_and_grad
        def loss(free):
            _, seen = net.apply(
                {"params": unflatten_dict(unravel(free) | fixed)},
                image,
                train=True,
                mutable=["intermediates"],
                capture_intermediates=lambda module, _: module.name == "head",
            )
            (logits,) = seen["intermediates"]["head"]["__call__"]  # Before they become float32.
            return (weight * logits).sum()

        gradient = np.asarray(loss(free)[1])
        assert np.isfinite(gradient).all()
        for index in rng.choice(len(free), 8, replace=False):
            step = np.zeros(len(free))
            step[index] = 1e-6
            slope = (loss(free + step)[0] - loss(free - step)[0]) / 2e-6
            assert gradient[index] == pytest.approx(float(slope), rel=1e-5, abs=1e-7)
