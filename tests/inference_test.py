"""Batches in a row, against one by one."""

import dataclasses

import jax
import numpy as np
import pytest

from tprnet_jax.method import cascade, inference


@pytest.fixture(scope="module")
def batches():
    """Four batches of noise, of two sizes."""
    rng = np.random.default_rng(0)
    sizes = [(2, 25, 22, 1)] * 3 + [(1, 30, 17, 1)]
    return [rng.integers(0, 256, size, np.uint8) for size in sizes]


@pytest.mark.parametrize("topology", cascade.TOPOLOGIES)
@pytest.mark.parametrize("branches", [1, 2, 3])
def test_masks_are_where_the_probability_exceeds_one_half(
    tiny, tiny_params, batches, branches, topology
):
    absent = dict.fromkeys([f"{name}_net" for name in cascade.BRANCHES[branches:]])
    ablation = dataclasses.replace(tiny, topology=topology, **absent)
    all_masks = list(inference.segment(ablation, tiny_params, batches))
    assert len(all_masks) == len(batches)
    for images, masks in zip(batches, all_masks, strict=True):
        probabilities = inference.predict(ablation, tiny_params, images)
        assert list(masks) == list(probabilities) == list(ablation.stages)
        for stage, mask in masks.items():
            assert mask.dtype == bool
            np.testing.assert_array_equal(mask, probabilities[stage] > 0.5)
            assert mask.any()
            assert not mask.all()


@pytest.mark.parametrize("topology", cascade.TOPOLOGIES)
def test_patches_lie_on_the_vessels_that_are_given(tiny, tiny_params, batches, topology):
    """A line in a corner, and none."""
    images, vessel = batches[0], np.zeros((2, 25, 22), bool)
    vessel[0, 12, 4:18] = True
    placed = dataclasses.replace(tiny, topology=topology)
    (masks,) = inference.segment(placed, tiny_params, [images], [vessel])
    coarse, seen, (_, corner) = inference._coarse(tiny, tiny_params, images)
    cut = [v[r : r + 16, c : c + 16] for v, (r, c) in zip(vessel, corner, strict=True)]
    owner, origin = cascade.sample_patches(tiny, np.stack(cut), corner, (25, 22))
    canvas = np.zeros((2, 25, 22, 3), np.float32)
    for patches in cascade.chunks(tiny.chunk, owner, origin, 2):
        canvas = inference._focal(tiny, tiny_params, seen, canvas, patches)
    logits = jax.jit(cascade.refine, static_argnums=0)(tiny, coarse, canvas)
    np.testing.assert_array_equal(masks["final"], cascade.is_vessel(logits["final"]))
    np.testing.assert_array_equal(masks["final"][1], masks["global_local"][1])
    assert (masks["final"][0] != masks["global_local"][0]).any()


def test_a_batch_is_given_out_after_two_more_have_begun(tiny, tiny_params, batches):
    drawn = []

    def noted():
        for number, images in enumerate(batches):
            drawn.append(number)
            yield images

    seen = [list(drawn) for _ in inference.segment(tiny, tiny_params, noted())]
    assert seen == [[0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]]


def test_a_mistake_of_the_host_stage_reaches_the_caller(tiny, tiny_params, batches, monkeypatch):
    def fail(*arguments):
        raise ValueError("no centreline today")

    monkeypatch.setattr(inference, "sample_patches", fail)
    with pytest.raises(ValueError, match="no centreline today"):
        list(inference.segment(tiny, tiny_params, batches))


def test_only_bits_leave_the_device(tiny, tiny_params, batches):
    """Masks of 22 columns are three bytes wide."""
    coarse, _, _ = inference._coarse(tiny, tiny_params, batches[0])
    canvas = jax.numpy.zeros((2, 25, 22, 3))
    bits = inference._bits(tiny, coarse, canvas)
    assert (bits.shape, bits.dtype) == ((3, 2, 25, 3), np.uint8)
