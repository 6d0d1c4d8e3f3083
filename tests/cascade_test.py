import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from tprnet_jax.method import cascade, inference, topology, windows
from tprnet_jax.method.cascade import BRANCHES, Cascade, Coarse
from tprnet_jax.models.unet import UNet


@dataclasses.dataclass(frozen=True)
class Threshold:
    """Stands for a network: finds what is brighter than `level`, less surely further down."""

    gain: float
    level: float
    slope: float = 0.0

    def apply(self, variables, images):
        del variables
        down = self.slope * jnp.arange(images.shape[1], dtype=jnp.float32)[None, :, None, None]
        foreground = self.gain * (images - self.level) - down
        return jnp.concatenate([jnp.zeros_like(foreground), foreground], axis=-1)


class GuidedThreshold(Threshold):
    """Adds the guiding probability to the grey value."""

    def apply(self, variables, images):
        return super().apply(variables, images.sum(axis=-1, keepdims=True))


GLOBAL, LOCAL, FOCAL = Threshold(8, 0.6), Threshold(4, 0.5), Threshold(2, 0.55, slope=0.1)
STUBS = Cascade(GLOBAL, LOCAL, FOCAL, 12, 5, 4, 20, chunk=3, refinement="topology_first")
NO_PARAMS = dict.fromkeys(BRANCHES)


def _blobs(seed, *shape):
    """Smooth images in [0, 1], bright inside a border."""
    noise = np.random.default_rng(seed).normal(size=shape)
    smooth = ndimage.gaussian_filter(noise, (0, 1.2, 1.2))
    return ((smooth - smooth.min()) / np.ptp(smooth)).astype(np.float32)[..., None]


def _probability(logit):
    return 1 / (1 + np.exp(-logit))


# ---- The whole against NumPy ---------------------------------------------------------------------


def _stub(net, image):
    return net.gain * (image - net.level) - net.slope * np.arange(len(image))[:, None]


def _window_by_definition(mask, side):
    """Eqs. 1 and 2, the rectangle's end exclusive."""
    origin = []
    for axis, n in enumerate(mask.shape):
        a = min(side, n)
        found = np.flatnonzero(mask.any(axis=1 - axis))
        centre = (found[0] + found[-1] + 1) // 2 if len(found) else n // 2
        origin.append(max(a // 2, min(centre, n - a + a // 2)) - a // 2)
    return np.s_[
        origin[0] : origin[0] + min(side, mask.shape[0]),
        origin[1] : origin[1] + min(side, mask.shape[1]),
    ]


def _focal_by_definition(image, centres, side):
    """Eqs. 5 and 6: M4, and where there is one."""
    total, weights = np.zeros(image.shape), np.zeros(image.shape)
    for there in _patches_by_definition(image.shape, centres, side):
        weight = np.asarray(windows.patch_weight(image[there].shape))
        total[there] += weight * _stub(FOCAL, image[there])
        weights[there] += weight
    return total / np.where(weights > 0, weights, 1), weights > 0


def _patches_by_definition(shape, centres, side):
    sides = [min(side, n) for n in shape]
    for centre in centres:
        first = [
            np.clip(c - s // 2, 0, n - s) for c, s, n in zip(centre, sides, shape, strict=True)
        ]
        yield tuple(slice(f, f + s) for f, s in zip(first, sides, strict=True))


def _final_by_definition(image, refinement, guided=False):
    """Logits of the last stage for one image, and how many pixels each rule decided."""
    m1 = _stub(GLOBAL, image)
    window = _window_by_definition(m1 > 0, STUBS.window)
    m2, in_window = np.zeros(image.shape), np.zeros(image.shape, bool)
    seen = image + guided * _probability(m1)
    m2[window], in_window[window] = _stub(LOCAL, seen[window]), True
    centres = topology.patch_centres((m1 + m2)[window] > 0, STUBS.pixels_per_patch, 20)
    seen = image + guided * _probability(np.where(in_window, (m1 + m2) / 2, m1))
    m4, in_patch = _focal_by_definition(seen, centres + [side.start for side in window], 5)
    covered = {
        "topology_first": m4 / 4 + m2 / 4 + m1 / 2,
        "location_first": m4 / 2 + m2 / 4 + m1 / 4,
    }[refinement]
    inside, outside = (m1 + m2) / 2, (m4 + m1) / 2
    final = np.where(
        in_patch, np.where(in_window, covered, outside), np.where(in_window, inside, m1)
    )
    return final, np.bincount((2 * in_patch + in_window).ravel(), minlength=4)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("refinement", ["topology_first", "location_first"])
def test_predict_against_numpy(refinement, guided):
    images = _blobs(0, 3, 25, 20)
    stubs = dataclasses.replace(STUBS, refinement=refinement, guided=guided)
    if guided:
        nets = (GuidedThreshold(net.gain, net.level, net.slope) for net in (LOCAL, FOCAL))
        stubs = dataclasses.replace(
            stubs, **dict(zip(("local_net", "focal_net"), nets, strict=True))
        )
    found = inference.predict(stubs, NO_PARAMS, images)["final"]
    decided = 0
    for image, probability in zip(images[..., 0], found, strict=True):
        expected, pixels = _final_by_definition(image, refinement, guided)
        decided += pixels
        np.testing.assert_allclose(probability, _probability(expected), atol=1e-6)
    assert (decided > 20).all()


def _released_by_definition(image, refinement):
    """As `_final_by_definition`, by the rules of the released code."""
    fused = _stub(GLOBAL, image)
    found = np.argwhere(fused > 0)
    start, end = found.min(axis=0), found.max(axis=0) + 1
    doubled = [start[0] + end[0], end[1] - start[1]]
    first = [int(np.clip(d // 2 - 6, 0, n - 12)) for d, n in zip(doubled, image.shape, strict=True)]
    window = tuple(slice(f, f + 12) for f in first)
    fused[window] = (fused[window] + _stub(LOCAL, image[window])) / 2
    centres = topology.patch_centres(fused > 0, 4, 20, "close_and_thin", "random")
    patches = list(_patches_by_definition(image.shape, centres, 5))
    outside = sum(p[0].start < window[0].start or p[1].stop > window[1].stop for p in patches)
    if refinement == "sequential":
        for there in patches:
            fused[there] = 0.5 * _stub(FOCAL, image[there]) + 0.5 * fused[there]
        return fused, outside
    canvas = np.full(image.shape, np.nan)
    for there in patches:
        value = _stub(FOCAL, image[there])
        canvas[there] = np.where(np.isnan(canvas[there]), value, (canvas[there] + value) / 2)
    return (np.nan_to_num(canvas) + fused) / 2, outside


@pytest.mark.parametrize("refinement", ["sequential", "canvas_mean"])
def test_the_released_rules_against_numpy(refinement):
    released = dataclasses.replace(
        STUBS,
        refinement=refinement,
        window_column="half_width",
        centreline_region="image",
        centreline="close_and_thin",
        first_point="random",
    )
    images = _blobs(5, 3, 25, 20)
    images[:, :, :6] = 0  # So that half the width is not the middle.
    found = inference.predict(released, NO_PARAMS, images)["final"]
    outside = 0
    for image, probability in zip(images[..., 0], found, strict=True):
        expected, patches = _released_by_definition(image, refinement)
        outside += patches
        np.testing.assert_allclose(probability, _probability(expected), atol=1e-6)
    assert outside > 0


@pytest.mark.parametrize("size", [(6, 20), (12, 12), (13, 9), (4, 3), (31, 4)])
def test_predict_where_window_or_patch_shrink_to_the_image(size):
    images = _blobs(1, 2, *size)
    found = inference.predict(STUBS, NO_PARAMS, images)["final"]
    assert found.shape == (2, *size)
    for image, probability in zip(images[..., 0], found, strict=True):
        expected, pixels = _final_by_definition(image, STUBS.refinement)
        assert pixels[3] > 0
        np.testing.assert_allclose(probability, _probability(expected), atol=1e-6)


def test_the_patch_chunk_changes_nothing():
    images = _blobs(2, 2, 25, 20)
    whole = dataclasses.replace(STUBS, chunk=40)
    np.testing.assert_allclose(
        inference.predict(STUBS, NO_PARAMS, images)["final"],
        inference.predict(whole, NO_PARAMS, images)["final"],
        atol=1e-6,
    )


# ---- Refinement ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("refinement", "covered"), [("topology_first", 8.0), ("location_first", 11.0)]
)
def test_refine_by_hand(refinement, covered):
    """M1 = 4, M2 = 8 in the window, M4 = 16 in one patch half inside the window."""
    stubs = dataclasses.replace(STUBS, refinement=refinement)
    coarse = Coarse(jnp.full((1, 4, 6, 2), 4.0), jnp.full((1, 4, 4, 2), 8.0), jnp.array([[0, 0]]))
    weight = np.zeros((1, 4, 6, 1), np.float32)
    weight[0, 1:3, 3:5] = 2
    canvas = np.concatenate([16 * weight, 16 * weight, weight], axis=-1)
    stages = jax.jit(cascade.refine, static_argnums=0)(stubs, coarse, canvas)
    rows = {
        "global": [[4, 4, 4, 4, 4, 4]] * 4,
        "global_local": [[6, 6, 6, 6, 4, 4]] * 4,
        "final": [[6, 6, 6, 6, 4, 4], *[[6, 6, 6, covered, 10, 4]] * 2, [6, 6, 6, 6, 4, 4]],
    }
    assert stages.keys() == rows.keys()
    for stage, expected in rows.items():
        for channel in range(2):
            np.testing.assert_array_equal(stages[stage][0, ..., channel], expected)


def test_without_focalnet_the_last_stage_is_global_local():
    images = _blobs(0, 2, 14, 15)
    ablation = dataclasses.replace(STUBS, focal_net=None)
    found = inference.predict(ablation, NO_PARAMS, images)
    assert tuple(found) == ablation.stages == ("global", "global_local", "final")
    np.testing.assert_array_equal(found["final"], found["global_local"])
    assert (found["final"] != found["global"]).any()


def test_without_localnet_the_last_stage_is_global():
    images = _blobs(0, 2, 14, 15)
    ablation = dataclasses.replace(STUBS, local_net=None, focal_net=None)
    found = inference.predict(ablation, NO_PARAMS, images)
    assert tuple(found) == ablation.stages == ("global", "final")
    np.testing.assert_array_equal(found["final"], found["global"])
    for image, probability in zip(images[..., 0], found["global"], strict=True):
        np.testing.assert_allclose(probability, _probability(_stub(GLOBAL, image)), atol=1e-6)


# ---- Nothing found -------------------------------------------------------------------------------


def test_an_empty_global_mask_centres_the_window():
    blind = dataclasses.replace(STUBS, global_net=Threshold(8, 2.0))
    forward = jax.jit(cascade.coarse_logits, static_argnums=0)
    coarse = forward(blind, NO_PARAMS, _blobs(0, 2, 25, 20))
    assert not cascade.is_vessel(coarse.global_logits).any()
    np.testing.assert_array_equal(coarse.origin, [(6, 4)] * 2)


def test_an_empty_centreline_leaves_global_local_as_it_is():
    blind = dataclasses.replace(STUBS, global_net=Threshold(8, 2.0), local_net=Threshold(4, 2.0))
    found = inference.predict(blind, NO_PARAMS, _blobs(0, 2, 25, 20))
    np.testing.assert_array_equal(found["final"], found["global_local"])
    assert (found["final"] < 0.5).all()


def test_an_empty_image_beside_one_with_vessels():
    images = _blobs(0, 2, 25, 20)
    images[0] = 0
    found = inference.predict(STUBS, NO_PARAMS, images)
    np.testing.assert_array_equal(found["final"][0], found["global_local"][0])
    assert (found["final"][1] != found["global_local"][1]).any()


# ---- The host stage ------------------------------------------------------------------------------


def test_sampled_patches_are_valid():
    rng = np.random.default_rng(0)
    vessel = ndimage.gaussian_filter(rng.normal(size=(6, 12, 12)), (0, 1.5, 1.5)) > 0
    vessel[2] = False
    corners = np.array([(0, 0), (0, 8), (5, 3), (13, 0), (13, 8), (7, 8)])
    owner, origin = cascade.sample_patches(STUBS, vessel, corners, (25, 20))
    assert owner.dtype == origin.dtype == np.int32
    assert (origin >= 0).all()
    assert (origin <= [25 - 5, 20 - 5]).all()
    for index, mask in enumerate(vessel):
        line = np.argwhere(topology.centreline(mask)) + corners[index]
        mine = origin[owner == index]
        assert len(mine) == (max(len(line) // 4, 1) if mask.any() else 0)
        for patch in mine:
            assert ((line >= patch) & (line < patch + 5)).all(axis=1).any()
    np.testing.assert_array_equal(owner, np.sort(owner))


@pytest.mark.parametrize(("most", "count"), [(20, 12), (3, 3)])
def test_no_image_gets_more_patches_than_the_most(most, count):
    stubs = dataclasses.replace(STUBS, pixels_per_patch=1, max_patches=most)
    diagonal = np.eye(12, dtype=bool)[None].repeat(2, axis=0)
    owner, _ = cascade.sample_patches(stubs, diagonal, np.zeros((2, 2), int), (25, 20))
    np.testing.assert_array_equal(owner, [0] * count + [1] * count)


def test_chunks_are_filled_with_empty_slots():
    owner = np.array([0, 0, 1, 1, 2], np.int32)
    origin = np.arange(1, 11, dtype=np.int32).reshape(5, 2)
    first, second = cascade.chunks(3, owner, origin, batch=3)
    np.testing.assert_array_equal(first.owner, [0, 0, 1])
    np.testing.assert_array_equal(first.origin, [(1, 2), (3, 4), (5, 6)])
    np.testing.assert_array_equal(second.owner, [1, 2, 3])
    np.testing.assert_array_equal(second.origin, [(7, 8), (9, 10), (0, 0)])
    assert {array.dtype for array in (*first, *second)} == {np.dtype(np.int32)}


@pytest.mark.parametrize(("patches", "count"), [(0, 0), (3, 1), (4, 2), (6, 2)])
def test_chunks_are_as_many_as_needed(patches, count):
    owner, origin = np.zeros(patches, np.int32), np.zeros((patches, 2), np.int32)
    assert len(list(cascade.chunks(3, owner, origin, batch=1))) == count
    assert len(list(cascade.chunks(3, owner, origin, batch=1, least=5))) == max(count, 2)


# ---- Networks ------------------------------------------------------------------------------------


def test_to_unit():
    scaled = cascade.to_unit(jnp.array([0, 51, 255], jnp.uint8))
    assert scaled.dtype == jnp.float32
    np.testing.assert_allclose(scaled, [0, 0.2, 1], rtol=1e-6)
    np.testing.assert_array_equal(cascade.to_unit(jnp.array([0.0, 0.3])), jnp.array([0.0, 0.3]))


def test_network_input(tiny, tiny_images):
    np.testing.assert_array_equal(
        cascade.network_input(tiny, jnp.asarray(tiny_images)), cascade.to_unit(tiny_images)
    )
    standard = dataclasses.replace(tiny, standardise=True)
    found = cascade.network_input(standard, jnp.asarray(tiny_images))
    unit = tiny_images / 255.0
    mean, deviation = (f(unit, axis=(1, 2, 3), keepdims=True) for f in (np.mean, np.std))
    np.testing.assert_allclose(found, (unit - mean) / deviation, atol=1e-5)
    flat = cascade.network_input(standard, jnp.full((1, 4, 4, 1), 0.3))
    np.testing.assert_allclose(flat, np.zeros((1, 4, 4, 1)), atol=0.1)


def test_a_standardised_cascade_ignores_brightness_and_contrast(tiny, tiny_params, tiny_images):
    standard = dataclasses.replace(tiny, standardise=True)
    unit = (tiny_images / 255).astype(np.float32)
    expected, found = (
        inference.predict(standard, tiny_params, images)["final"]
        for images in (unit, 0.2 + unit / 2)
    )
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("size", [(25, 22), (7, 19)], ids=["odd", "smaller than the patch"])
def test_a_batch_is_predicted_as_its_images_are(tiny, tiny_params, size):
    """Sums in another order may change the last digits of a logit, and nothing else."""
    images = np.random.default_rng(3).integers(0, 256, (3, *size, 1), np.uint8)
    together = inference.predict(tiny, tiny_params, images)
    assert tuple(together) == ("global", "global_local", "final")
    assert (together["final"] != together["global_local"]).any(axis=(1, 2)).all()
    for index, image in enumerate(images):
        alone = inference.predict(tiny, tiny_params, image[None])
        for stage, probability in alone.items():
            assert probability.dtype == np.float32
            assert probability.shape == (1, *size)
            np.testing.assert_allclose(probability[0], together[stage][index], atol=1e-5)


def test_bytes_and_unit_floats_are_predicted_alike(tiny, tiny_params, tiny_images):
    floats = tiny_images / np.float32(255)
    np.testing.assert_allclose(
        inference.predict(tiny, tiny_params, floats)["final"],
        inference.predict(tiny, tiny_params, tiny_images)["final"],
        atol=1e-5,
    )


def test_an_ablation_starts_from_the_weights_of_the_whole():
    net = UNet((2,))
    whole = Cascade(net, net, net, 16, 8, 8, 20, 4, "topology_first")
    global_local = dataclasses.replace(whole, focal_net=None)
    global_only = dataclasses.replace(global_local, local_net=None)
    params = cascade.init(whole, jax.random.key(1))
    for ablation in (global_local, global_only):
        branches = cascade.init(ablation, jax.random.key(1))
        assert tuple(branches) == tuple(ablation.networks)
        for name, branch in branches.items():
            jax.tree.map(np.testing.assert_array_equal, branch, params[name])
    kernels = [params[name]["encoder_0_0"]["conv"]["kernel"] for name in BRANCHES]
    for one, other in itertools.combinations(kernels, 2):
        assert (one != other).all()


def test_guided_branches_see_two_channels(tiny):
    params = cascade.init(dataclasses.replace(tiny, guided=True), jax.random.key(0))
    seen = {
        name: branch["encoder_0_0"]["conv"]["kernel"].shape[2] for name, branch in params.items()
    }
    assert seen == {"global": 1, "local": 2, "focal": 2}


def test_guidance_is_a_constant_to_the_gradient(tiny, tiny_images):
    guided = dataclasses.replace(tiny, guided=True)
    params = cascade.init(guided, jax.random.key(0))
    images = cascade.to_unit(tiny_images)

    def local_logits(params):
        return cascade.coarse_logits(guided, params, images).local_logits.sum()

    def focal_seen(params):
        coarse = cascade.coarse_logits(guided, params, images)
        return cascade.focal_input(guided, images, coarse).sum()

    by_local = jax.jit(jax.grad(local_logits))(params)
    assert not any(leaf.any() for leaf in jax.tree.leaves(by_local["global"]))
    assert by_local["local"]["head"]["kernel"].any()
    by_seen = jax.jit(jax.grad(focal_seen))(params)
    assert not any(leaf.any() for leaf in jax.tree.leaves(by_seen))
