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
from tprnet_jax.models.umamba import VARIANTS, UMamba
from tprnet_jax.runtime.errors import UserError

SIX_STAGES = (32, 64, 128, 256, 512, 512)
# In "enc" a Mamba layer over 64 pixels of 2 channels, and one over 4 channels of 4 pixels.
TINY = {"channels": (2, 3, 4), "size": (8, 8)}
SMALL = (2, 4)  # Compiles sooner.


# ---- Parameters ----------------------------------------------------------------------------------

STAGES = {
    "stem": [9_760 + 18_624],
    "encoder": [38_304, 131_904, 525_952, 2_100_480, 3_673_600, *[4_984_320] * 3],
    "decoder": [19_680, 119_232, 476_032, 3_083_520, *[12_327_424] * 3],
    "match": [2_080, 8_256, 32_896, 131_328, *[262_656] * 3],
    "head": [66, 130, 258, 514, *[1_026] * 3],
}
MAMBA = {
    "bot": {7: 1_695_744},
    "enc": {1: 32_768, 3: 438_272, 5: 438_272, 7: 3_392},
}


@pytest.mark.parametrize(("variant", "total"), [("bot", 64_794_638), ("enc", 64_011_598)])
def test_parameter_counts_at_full_size(variant, total):
    counts = collections.defaultdict(lambda: collections.defaultdict(int))
    for path, leaf in flax.traverse_util.flatten_dict(
        network_checks.shapes(UMamba(variant=variant, auxiliary=True))
    ).items():
        part, stage = [*path[0].split("_"), "0"][:2]
        counts[part][0 if part == "stem" else int(stage)] += leaf.size
    assert counts.pop("mamba") == MAMBA[variant]
    assert {part: [found[s] for s in sorted(found)] for part, found in counts.items()} == STAGES
    assert sum(map(sum, STAGES.values())) + sum(MAMBA[variant].values()) == total


# ---- The official networks -----------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_golden(variant):
    net = UMamba(SIX_STAGES, variant=variant, size=(128, 128), auxiliary=True)
    facts, params, image = golden_baselines.read(f"umamba_{variant}", net)

    @jax.jit
    def run(params, image):
        return net.apply(
            {"params": params},
            image,
            mutable=["auxiliary", "intermediates"],
            capture_intermediates=lambda module, _: len(module.path) == 1,
        )

    logits, sown = run(*jax.tree.map(np.float32, (params, image)))
    outputs = {f"logits_s{stage}": sown["auxiliary"][f"logits_{stage}"][0] for stage in range(1, 5)}
    gap = facts["float32_vs_float64_max_abs"]
    for output, value in (outputs | {"logits_s0": logits}).items():
        tolerance = max(1e-4, 10 * gap[output])
        golden_baselines.assert_samples(value, facts["outputs"][output], tolerance)
    # Of stages of several blocks it is the last one's.
    ours = {
        "encoder.stem": "stem_1",
        "encoder.stages.0": "encoder_0_1",
        "encoder.stages.5": "encoder_5_0",
        "decoder.stages.0": "decoder_4_1",
        "decoder.stages.4": "decoder_0_0",
    }
    for module, name in ours.items():
        (activation,) = sown["intermediates"][name]["__call__"]
        tolerance = max(1e-4, 10 * max(gap.values()))
        golden_baselines.assert_activation(activation, facts["activations"][module], tolerance)


@pytest.mark.parametrize(("variant", "auxiliary"), [("bot", False), ("enc", True)])
def test_to_pytorch_and_back(variant, auxiliary):
    net = UMamba(**TINY, variant=variant, auxiliary=auxiliary)
    params = {"global": network_checks.random_params(net)}
    state = weights.to_torch({"global": net}, params)
    heads = {name for name in state if "seg_layers" in name}
    assert heads == {f"decoder.seg_layers.{j}.{p}" for j in (0, 1) for p in ("weight", "bias")}
    jax.tree.map(np.testing.assert_array_equal, weights.from_torch({"global": net}, state), params)


@pytest.mark.parametrize(
    ("variant", "path", "names"),
    [
        ("bot", "encoder_1_0/conv2/norm/scale", ["{}encoder.stages.1.0.norm2.weight"]),
        (
            "bot",
            "encoder_1_1/conv2/norm/scale",
            [f"{{}}encoder.stages.1.1.conv2.{norm}.weight" for norm in ("norm", "all_modules.1")],
        ),
        ("enc", "mamba_2/mamba/A_log", ["{}encoder.mamba_layers.2.mamba.A_log"]),
    ],
)
def test_the_decoder_of_a_state_dict_has_the_encoder_too(variant, path, names):
    found = UMamba(**TINY, variant=variant).torch_names(tuple(path.split("/")))
    assert set(found) == {name.format(owner) for name in names for owner in ("", "decoder.")}


# ---- What it does --------------------------------------------------------------------------------


def test_images_of_any_size_each_by_itself_in_bfloat16():
    network_checks.assert_images_apart_in_bfloat16(UMamba(SMALL))


def test_enc_is_for_one_size():
    net = UMamba(**TINY, variant="enc")
    run = functools.partial(jax.eval_shape, net.apply, {"params": network_checks.shapes(net)})
    assert run(jnp.zeros((3, 5, 8, 1))).shape == (3, 5, 8, 2)  # 8 x 8 with its padding.
    with pytest.raises(UserError, match=r"images are 8 x 9, but .* size=\(8, 8\) alone"):
        run(jnp.zeros((1, 8, 9, 1)))
    images = jnp.zeros((1, 8, 8, 1)), jnp.zeros((2, 64, 40, 1))
    one, other = (jax.eval_shape(net.init, jax.random.key(0), image) for image in images)
    assert one == other


def test_deep_supervision_is_computed_where_asked_alone():
    network_checks.assert_supervised_where_asked_alone(UMamba(**TINY, auxiliary=True))


def test_gradients_are_finite_differences():
    """Of the sum of squares of the logits."""
    net, rng = UMamba((4,), variant="enc", size=(8, 8)), np.random.default_rng(2)
    image = rng.random((1, 8, 8, 1))

    def loss(params):
        return jnp.square(net.apply({"params": params}, image)).sum()

    network_checks.assert_slopes(loss, network_checks.random_params(net), rng)
