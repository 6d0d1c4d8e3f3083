import collections
import functools

import flax
import golden_baselines
import jax
import jax.numpy as jnp
import network_checks
import numpy as np
import pytest

from tprnet_jax.models import weights
from tprnet_jax.models.nnunet import VARIANTS, NNUNet
from tprnet_jax.models.residual import ResidualBlock
from tprnet_jax.models.unet import ConvBlock, UNet, UpConv

SIX_STAGES = (32, 64, 128, 256, 512, 512)
TINY = (2, 3, 4)


# ---- Parameters ----------------------------------------------------------------------------------

UPS = [3 * 1_049_088, 524_544, 131_200, 32_832, 8_224]
HEADS = [3 * 1_026, 514, 258, 130, 66]
STAGES = {
    "plain": {
        "encoder": [9_696, 55_680, 221_952, 886_272, 3_542_016, *[4_721_664] * 3],
        "decoder": [27_840, 110_976, 443_136, 1_771_008, *[7_080_960] * 3],
    },
    "resenc": {
        "stem": [384],
        "encoder": [18_624, 206_080, 1_117_440, 6_825_472, 27_282_432, *[28_329_984] * 3],
        "decoder": [18_528, 73_920, 295_296, 1_180_416, *[4_720_128] * 3],
    },
}


@pytest.mark.parametrize(("variant", "total"), [("plain", 46_324_558), ("resenc", 140_017_038)])
def test_parameter_counts_at_full_size(variant, total):
    counts = collections.defaultdict(lambda: collections.defaultdict(int))
    for path, leaf in flax.traverse_util.flatten_dict(
        network_checks.shapes(NNUNet(variant=variant, auxiliary=True))
    ).items():
        part, stage = [*path[0].split("_"), "0"][:2]
        counts[part][int(stage)] += leaf.size
    by_stage = {part: [found[s] for s in sorted(found)] for part, found in counts.items()}
    ups, heads = by_stage.pop("up"), by_stage.pop("head")
    assert by_stage == STAGES[variant]
    assert (sum(ups), sum(heads)) == (sum(UPS), sum(HEADS))
    assert sum(map(sum, STAGES[variant].values())) + sum(ups) + sum(heads) == total


def test_without_deep_supervision_the_plain_network_is_the_unet():
    assert network_checks.shapes(NNUNet(TINY)) == network_checks.shapes(UNet(TINY))
    assert NNUNet(TINY).torch_idle() == UNet(TINY).torch_idle()


# ---- The official networks -----------------------------------------------------------------------


def _stage_of(name, stages):
    """Where the activation of an official module is found here."""
    part, kind, *number = name.split(".")
    if kind == "stem":
        return "stem"
    number = int(number[0])
    if kind == "transpconvs":
        return f"up_{stages - 2 - number}"
    return f"{part}_{number if part == 'encoder' else stages - 2 - number}"


def _last_of_each_stage(intermediates):
    """Activations by stage: its last block's."""
    found = {}
    for name, value in sorted(intermediates.items()):
        part = name.split("_")
        found["_".join(part[:2])] = value["__call__"][0]
    return found


@pytest.mark.parametrize(("name", "variant"), [("nnunet", "plain"), ("nnunet_resenc", "resenc")])
def test_golden(name, variant):
    net = NNUNet(SIX_STAGES, variant=variant, auxiliary=True)
    facts, params, image = golden_baselines.read(name, net)

    @jax.jit
    def run(params, image):
        kinds = ConvBlock, ResidualBlock, UpConv
        return net.apply(
            {"params": params},
            image,
            mutable=["auxiliary", "intermediates"],
            capture_intermediates=lambda module, _: isinstance(module, kinds),
        )

    logits, sown = run(*jax.tree.map(np.float32, (params, image)))
    outputs = {f"logits_s{stage}": sown["auxiliary"][f"logits_{stage}"][0] for stage in range(1, 5)}
    gap = facts["float32_vs_float64_max_abs"]
    for output, value in (outputs | {"logits_s0": logits}).items():
        tolerance = max(1e-4, 10 * gap[output])
        golden_baselines.assert_samples(value, facts["outputs"][output], tolerance)
    found = _last_of_each_stage(sown["intermediates"])
    for module, expected in facts["activations"].items():
        activation = found[_stage_of(module, len(SIX_STAGES))]
        golden_baselines.assert_activation(activation, expected, max(1e-4, 10 * max(gap.values())))


@pytest.mark.parametrize("auxiliary", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_to_pytorch_and_back(variant, auxiliary):
    net = NNUNet(TINY, variant=variant, auxiliary=auxiliary)
    params = {"global": network_checks.random_params(net)}
    state = weights.to_torch({"global": net}, params)
    heads = {name for name in state if "seg_layers" in name}
    assert heads == {f"decoder.seg_layers.{j}.{p}" for j in (0, 1) for p in ("weight", "bias")}
    jax.tree.map(np.testing.assert_array_equal, weights.from_torch({"global": net}, state), params)


# ---- What it does --------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=VARIANTS)
def net(request):
    return NNUNet(TINY, variant=request.param, auxiliary=True)


@pytest.fixture(scope="module", params=VARIANTS)
def small(request):
    """What compiles soon: a residual encoder of two stages has four blocks, one of three eight."""
    channels = {"plain": TINY, "resenc": TINY[:2]}[request.param]
    return NNUNet(channels, variant=request.param, auxiliary=True)


def test_images_of_any_size_each_by_itself(small):
    network_checks.assert_odd_images_apart(small, 2 ** (len(small.channels) - 1))


def test_deep_supervision_is_computed_where_asked_alone(net):
    network_checks.assert_supervised_where_asked_alone(net)


def test_bfloat16_gives_finite_float32_logits(small):
    image = np.random.default_rng(1).random((1, 16, 16, 1)).astype(np.float32)
    half = small.clone(dtype="bfloat16")
    run = jax.jit(functools.partial(half.apply, mutable=["auxiliary"]))
    for logits in jax.tree.leaves(run({"params": network_checks.random_params(small)}, image)):
        assert logits.dtype == jnp.float32
        assert np.isfinite(logits).all()


def test_gradients_are_finite_differences(small):
    """Of the sum of squares of all logits."""
    rng = np.random.default_rng(2)
    image = rng.random((1, 8, 8, 1))

    def loss(params):
        outputs = small.apply({"params": params}, image, mutable=["auxiliary"])
        return sum(jnp.square(logits).sum() for logits in jax.tree.leaves(outputs))

    network_checks.assert_slopes(loss, network_checks.random_params(small), rng)
