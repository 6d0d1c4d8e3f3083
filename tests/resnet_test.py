import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tprnet_jax.models import weights
from tprnet_jax.models.resnet import Bottleneck, ResNet, with_torchvision
from tprnet_jax.runtime.errors import UserError

TINY = ResNet((2, 2, 3, 2), (1, 1, 2, 1))


def _shapes(channels):
    image = jnp.zeros((1, 8, 8, channels))
    return jax.eval_shape(TINY.init, jax.random.key(0), image)["params"]


@pytest.fixture(scope="module")
def state():
    """What torchvision would save, with the layer for ImageNet's classes."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.uniform(0.1, 1, leaf.shape), _shapes(3))
    state = weights.to_torch({"global": TINY}, {"global": params}, channels=3)
    return state | {"fc.weight": np.zeros((1000, 8)), "fc.bias": np.zeros(1000)}


@pytest.fixture(scope="module")
def params():
    return {"backbone": _shapes(1), "head": {"bias": np.ones(2)}}


def test_kernels_start_he_normal_by_their_outputs():
    """Of 1x1, from 16 channels to 64; a standard deviation of n samples is off by 1 / sqrt(2 n)."""
    block = Bottleneck(16, 1, 1, False, None)
    init = jax.jit(functools.partial(block.init, train=False))
    kernel = init(jax.random.key(0), jnp.zeros((1, 2, 2, 64)))["params"]["conv3"]["kernel"]
    assert kernel.shape == (1, 1, 16, 64)
    assert float(kernel.std()) == pytest.approx((2 / 64) ** 0.5, rel=4 / (2 * kernel.size) ** 0.5)


def test_names_are_torchvisions(state):
    block = [f"layer1.0.{kind}{n}" for n in (1, 2, 3) for kind in ("conv", "bn")]
    block += ["layer1.0.downsample.0", "layer1.0.downsample.1"]
    modules = {name.rpartition(".")[0] for name in state}
    assert {module for module in modules if module.startswith("layer1.0.")} == set(block)
    assert not any(module.startswith("layer3.1.downsample") for module in modules)
    assert {"conv1", "bn1", "layer3.1.conv2", "layer4.0.bn3", "fc"} < modules
    assert state["conv1.weight"].shape == (2, 3, 7, 7)
    assert state["bn1.num_batches_tracked"].shape == ()


def test_torchvisions_backbone_sees_a_grey_image_as_three_channels(state, params):
    replaced = with_torchvision(params, TINY, state)
    assert replaced["head"] is params["head"]
    assert params["backbone"] == _shapes(1)  # As before.
    colour = weights.from_torch({"global": TINY}, _without_classes(state), channels=3)["global"]
    image = np.random.default_rng(1).random((1, 16, 8, 1)).astype(np.float32)
    apply = jax.jit(TINY.apply)
    found = apply({"params": replaced["backbone"]}, image)
    expected = apply({"params": colour}, image.repeat(3, axis=-1))
    assert [stage.shape for stage in found] == [
        (1, 4, 2, 8),
        (1, 2, 1, 8),
        (1, 2, 1, 12),
        (1, 2, 1, 8),
    ]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4)


def test_a_network_for_colour_keeps_the_three_channels(state):
    replaced = with_torchvision({"backbone": _shapes(3)}, TINY, state)
    kernel = replaced["backbone"]["conv1"]["kernel"]
    np.testing.assert_array_equal(kernel, state["conv1.weight"].transpose(2, 3, 1, 0))


def test_what_does_not_fit_is_named(state, params):
    fewer = {name: value for name, value in state.items() if name != "layer3.1.bn2.weight"}
    with pytest.raises(UserError, match=r"it lacks the tensor layer3.1.bn2.weight \(3,\)"):
        with_torchvision(params, TINY, fewer)
    with pytest.raises(UserError, match=r"it has the tensor layer3.2.conv1.weight \(3, 12, 1, 1\)"):
        with_torchvision(params, TINY, state | {"layer3.2.conv1.weight": np.zeros((3, 12, 1, 1))})


def _without_classes(state):
    return {name: value for name, value in state.items() if not name.startswith("fc.")}
