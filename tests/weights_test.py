import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tprnet_jax.models.unet import UNet
from tprnet_jax.models.weights import from_torch, of_official, to_torch
from tprnet_jax.runtime.errors import UserError

NETWORKS = {"global": UNet((2, 3, 4)), "local": UNet((3, 2)), "focal": UNet((2, 2))}


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    image = jnp.zeros((1, 8, 8, 1))
    shapes = {
        name: jax.eval_shape(net.init, jax.random.key(0), image)["params"]
        for name, net in NETWORKS.items()
    }
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def state(params):
    return to_torch(NETWORKS, params)


def _assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_there_and_back_is_bitwise_the_same(params, state):
    _assert_same(from_torch(NETWORKS, state), params)
    again = to_torch(NETWORKS, from_torch(NETWORKS, state))
    _assert_same(again, state)


@pytest.mark.parametrize(
    ("name", "path", "axes"),
    [
        ("encoder.stages.1.0.convs.0.conv.weight", "encoder_1_0/conv/kernel", (2, 3, 1, 0)),
        ("decoder.encoder.stages.2.0.convs.1.all_modules.1.weight", "encoder_2_1/norm/scale", (0,)),
        ("decoder.stages.0.convs.1.conv.bias", "decoder_1_1/conv/bias", (0,)),
        ("decoder.transpconvs.0.weight", "up_1/kernel", (2, 3, 0, 1)),
        ("decoder.transpconvs.1.weight", "up_0/kernel", (2, 3, 0, 1)),
        ("decoder.seg_layers.1.weight", "head/kernel", (2, 3, 1, 0)),
    ],
)
def test_what_is_what(params, state, name, path, axes):
    """The decoder's deepest stage comes first there, and is named by its resolution here."""
    leaf = params["global"]
    for step in path.split("/"):
        leaf = leaf[step]
    np.testing.assert_array_equal(leaf, np.transpose(state[f"global_net.{name}"], axes))


def test_the_state_dict_has_every_name(state):
    """8 names a block of the encoder, twice over; 8 a block of the decoder; 2 an up, 2 a head."""
    assert len(state) == sum(
        stages * 2 * 16 + (stages - 1) * (2 * 8 + 2 + 2) for stages in (3, 2, 2)
    )
    assert state["global_net.decoder.seg_layers.0.weight"].shape == (2, 3, 1, 1)
    assert not state["global_net.decoder.seg_layers.0.weight"].any()


def test_a_single_network_has_no_prefix(params):
    networks = {"global": NETWORKS["global"]}
    state = to_torch(networks, params)
    assert "encoder.stages.0.0.convs.0.conv.weight" in state
    _assert_same(from_torch(networks, state), {"global": params["global"]})


def test_names_that_nothing_needs_may_be_missing(params, state):
    least = {
        name: value
        for name, value in state.items()
        if "all_modules" not in name and "decoder.encoder" not in name
    }
    del least["global_net.decoder.seg_layers.0.weight"]
    _assert_same(from_torch(NETWORKS, least), params)


CONV = "local_net.decoder.stages.0.convs.0.conv.weight"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({CONV: None}, f"it lacks the tensor {CONV} (3, 6, 3, 3)"),
        ({CONV: np.zeros((3, 5, 3, 3))}, f"its tensor {CONV} is (3, 5, 3, 3), not (3, 6, 3, 3)"),
        ({"local_net.more": np.zeros(2)}, "it has the tensor local_net.more (2,), which these"),
        (
            {CONV.replace("conv.w", "all_modules.0.w"): np.zeros((3, 6, 3, 3))},
            f"its tensors {CONV} and {CONV.replace('conv.w', 'all_modules.0.w')} should be one",
        ),
        (
            {"global_net.decoder.seg_layers.0.bias": np.zeros(3)},
            "its tensor global_net.decoder.seg_layers.0.bias is (3,), not (2,)",
        ),
    ],
    ids=["missing", "mis-shaped", "extra", "two values", "idle head"],
)
def test_what_does_not_fit_is_named(state, change, sentence):
    changed = {name: value for name, value in (state | change).items() if value is not None}
    with pytest.raises(UserError) as error:
        from_torch(NETWORKS, changed)
    assert str(error.value).startswith(sentence)


def test_official_weights_of_three_channels_and_one_class():
    """A grey image three times, and the sigmoid of one logit, are the softmax of ours."""
    rng = np.random.default_rng(0)
    published, ours = UNet((2, 3), classes=1), UNet((2, 3))
    shapes = jax.eval_shape(published.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    theirs = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes)
    state = to_torch({"global": published}, {"global": theirs}, channels=3)
    params = of_official(ours, state)
    image = rng.random((1, 8, 8, 1)).astype(np.float32)
    expected = jax.nn.sigmoid(published.apply({"params": theirs}, np.repeat(image, 3, axis=-1)))
    found = jax.nn.softmax(ours.apply({"params": params}, image))
    np.testing.assert_allclose(found[..., 1:], expected, atol=1e-5)
