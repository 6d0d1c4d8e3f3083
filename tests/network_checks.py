"""What compared networks are checked for, whichever they are."""

import functools

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
    for path, leaf in flatten_dict(shapes(net)).items():
        if path[-1] not in STATISTICS:
            found[path[0]] = found.get(path[0], 0) + leaf.size
    return found


def random_params(net) -> dict:
    """All of them random, so that none can be left out unnoticed; from NumPy, which is quick."""
    rng = np.random.default_rng(0)
    params = {}
    for path, leaf in flatten_dict(shapes(net)).items():
        mean = 1 if path[-1] in ("scale", "var") else 0
        deviation = 0.3 if path[-1] in ("kernel", "bias") else 0.1
        params[path] = rng.normal(mean, deviation, leaf.shape).astype(np.float32)
    return unflatten_dict(params)


@functools.cache
def shapes(net) -> dict:
    """Of the parameters, for images of one channel."""
    return jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 16, 16, 1)))["params"]


def assert_odd_images_apart(net, multiple: int) -> None:
    """An image is padded at the bottom and right, and treated alike whatever it is beside."""
    params = {"params": random_params(net)}
    height, width = 2 * multiple - 1, 3 * multiple - 1
    images = np.random.default_rng(1).random((2, height, width, 1), np.float32)
    padded = np.pad(images, ((0, 0), (0, 1), (0, 1), (0, 0)), mode="edge")
    apply = jax.jit(net.apply)
    together = apply(params, images)
    assert (together.shape, together.dtype) == ((2, height, width, 2), np.float32)
    for image, logits in zip(padded, together, strict=True):
        alone = apply(params, image[None])[0, :height, :width]
        np.testing.assert_allclose(logits, alone, atol=1e-4)


def assert_bfloat16_gives_float32(net) -> None:
    image = np.random.default_rng(1).random((1, 16, 16, 1), np.float32)
    logits = jax.jit(net.clone(dtype="bfloat16").apply)({"params": random_params(net)}, image)
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()


def assert_images_apart_in_bfloat16(net) -> None:
    """The logits are finite float32, and an image's own whatever it is beside."""
    images = np.random.default_rng(1).random((2, 9, 13, 1), np.float32)
    params, apply = {"params": random_params(net)}, jax.jit(net.clone(dtype="bfloat16").apply)
    logits = apply(params, images)
    assert (logits.shape, logits.dtype) == ((2, 9, 13, 2), np.float32)
    assert np.isfinite(logits).all()
    images[0] = 0
    changed = apply(params, images)
    assert (changed[0] != logits[0]).any()
    np.testing.assert_array_equal(changed[1], logits[1])


def assert_supervised_where_asked_alone(net) -> None:
    """Of three stages, the middle one has logits, at half the resolution, if the network has any.

    Args:
        net: With three stages and auxiliary outputs.
    """
    image, plain = np.ones((1, 5, 8, 1), np.float32), net.clone(auxiliary=False)

    def sown(net):
        run = functools.partial(net.apply, mutable=["auxiliary"])
        return jax.eval_shape(run, {"params": shapes(net)}, image)[1]

    ((name, (coarse,)),) = sown(net)["auxiliary"].items()
    assert (name, coarse.shape) == ("logits_1", (1, 4, 4, 2))
    assert shapes(net).keys() - shapes(plain).keys() == {"head_1"}
    assert not sown(plain)


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
    """In training, of the logits weighed at random; see `assert_slopes`."""
    rng = np.random.default_rng(2)
    image, weight = rng.random((1, 8, 8, 1)), rng.normal(size=(1, 8, 8, 2))

    def loss(params):
        _, seen = net.apply(
            {"params": params},
            image,
            train=True,
            mutable=["intermediates"],
            capture_intermediates=lambda module, _: module.name == "head",
        )
        (logits,) = seen["intermediates"]["head"]["__call__"]  # Before they become float32.
        return (weight * logits).sum()

    assert_slopes(loss, random_params(net), rng)


def assert_slopes(loss, params: dict, rng: np.random.Generator) -> None:
    """The gradient of eight tensors is finite, and in a random direction of each what changes.

    The tensors are drawn. They are no biases, most of which come before a normalisation and have no
    slope, and no running statistics, whose gradient is none.

    Args:
        loss: Of the parameters; it is given them, and computed, in float64.
        params: Of the network.
        rng: Draws tensors and directions.
    """
    fixed = flatten_dict(params)
    free = [path for path in fixed if path[-1] not in ("bias", *STATISTICS)]
    chosen = [free[index] for index in rng.choice(len(free), 8, replace=False)]
    with jax.enable_x64(True):
        fixed = jax.tree.map(np.float64, fixed)
        tensors = {path: fixed.pop(path) for path in chosen}
        slope = jax.jit(jax.value_and_grad(lambda tensors: loss(unflatten_dict(fixed | tensors))))
        gradients = slope(tensors)[1]
        for path, tensor in tensors.items():
            way = rng.normal(size=tensor.shape)
            ends = [slope(tensors | {path: tensor + step * way})[0] for step in (1e-6, -1e-6)]
            change = float(ends[0] - ends[1]) / 2e-6
            assert np.isfinite(gradients[path]).all(), path
            assert abs(change) > 1e-3, path
            assert (gradients[path] * way).sum() == pytest.approx(change, rel=1e-5), path
