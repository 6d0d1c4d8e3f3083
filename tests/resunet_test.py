import golden_baselines
import jax
import network_checks
import numpy as np
import pytest

from tprnet_jax.models import weights
from tprnet_jax.models.resunet import ResUNet

TINY = ResUNet((2, 3))


# ---- The official network ------------------------------------------------------------------------

# With one class, as the original.
PARAMETERS = {
    "stem": 37_696 + 640,
    "encoder_1": 295_936,
    "encoder_2": 1_181_696,
    "encoder_3": 4_722_688,
    "up_2": 1_049_088,
    "decoder_2": 4_132_096,
    "up_1": 262_400,
    "decoder_1": 1_033_856,
    "up_0": 65_664,
    "decoder_0": 258_880,
    "head": 65,
}
MODULES = {
    "residual_conv_1": "encoder_1",
    "residual_conv_2": "encoder_2",
    "bridge": "encoder_3",
    "upsample_1": "up_2",
    "up_residual_conv1": "decoder_2",
    "up_residual_conv2": "decoder_1",
    "up_residual_conv3": "decoder_0",
    "output_layer.0": "head",
}


def test_parameter_counts_at_full_size():
    assert network_checks.counts(ResUNet(classes=1)) == PARAMETERS
    assert sum(PARAMETERS.values()) == 13_040_705


def test_golden():
    net = ResUNet(classes=1)
    facts, params, image = golden_baselines.read("resunet", net)

    def run(params, image):
        logits, seen = net.apply(
            {"params": params}, image, capture_intermediates=True, mutable=["intermediates"]
        )
        outputs = {"prob": jax.nn.sigmoid(logits)}
        return golden_baselines.loss(outputs, facts), (outputs, seen)

    gradients, (outputs, seen) = jax.jit(jax.grad(run, has_aux=True))(
        *jax.tree.map(np.float32, (params, image))
    )
    tolerance = 10 * facts["float32_vs_float64_max_abs"]["prob"]
    golden_baselines.assert_samples(outputs["prob"], facts["outputs"]["prob"], tolerance)
    for module, name in MODULES.items():
        (activation,) = seen["intermediates"][name]["__call__"]
        golden_baselines.assert_activation(activation, facts["activations"][module], 1e-4)
    # Of millions of values some are so near zero that rounding decides on the slope of their ReLU.
    golden_baselines.assert_gradients(gradients, net, facts, 1e-3)


def test_it_goes_to_pytorch_and_back():
    network_checks.assert_goes_to_pytorch_and_back(TINY)


def test_pytorchs_counters_of_steps_are_idle():
    """Three batch normalisations in each of two residual units, one before them."""
    idle = TINY.torch_idle()
    assert len(idle) == 3 * 2 + 1
    assert set(idle.values()) == {()}
    state = weights.to_torch({"global": TINY}, {"global": network_checks.random_params(TINY)})
    norms = {name.rpartition(".")[0] for name in state if name.endswith("running_mean")}
    assert {f"{norm}.num_batches_tracked" for norm in norms} == set(idle)


def test_parameters_start_as_pytorchs(monkeypatch):
    network_checks.assert_starts_as_pytorch(TINY, monkeypatch)


# ---- What it does --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (7, 8), (13, 17)])
def test_logits_have_the_size_of_the_image(size):
    image = jax.ShapeDtypeStruct((2, *size, 2), np.float32)
    logits, _ = jax.eval_shape(TINY.init_with_output, jax.random.key(0), image)
    assert logits.shape == (2, *size, 2)


def test_images_of_odd_size_each_by_itself():
    network_checks.assert_odd_images_apart(TINY, 2)


def test_bfloat16_gives_finite_float32_logits():
    network_checks.assert_bfloat16_gives_float32(TINY)


def test_gradients_are_finite_differences():
    network_checks.assert_gradient_is_finite_differences(TINY)
