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
def test_batches_take_turns_on_several_devices(tiny, tiny_params, batches, monkeypatch, topology):
    """Two copies of the parameters, the second of which finds nothing."""
    placed = dataclasses.replace(tiny, topology=topology)
    nothing = jax.tree.map(np.zeros_like, tiny_params)
    expected = [
        next(inference.segment(placed, p, [b]))
        for p, b in zip([tiny_params, nothing] * 2, batches, strict=True)
    ]
    monkeypatch.setattr(inference, "_copies", lambda params: [params, nothing])
    for found, masks in zip(inference.segment(placed, tiny_params, batches), expected, strict=True):
        jax.tree.map(np.testing.assert_array_equal, found, masks)
    assert expected[0]["final"].any()
    assert not expected[1]["final"].any()


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


def test_only_bits_leave_the_device(tiny):
    """Masks of 22 columns are three bytes wide."""
    logits = np.zeros((2, 25, 22, 2), np.float32)
    logits[..., 0, 1] = logits[..., 9, 1] = 1
    coarse = cascade.Coarse(logits, None, None)
    bits = inference.bits(dataclasses.replace(tiny, local_net=None, focal_net=None), coarse, None)
    assert (bits.shape, bits.dtype) == ((2, 2, 25, 3), np.uint8)
    np.testing.assert_array_equal(np.unique(bits.reshape(-1, 3), axis=0), [[128, 64, 0]])
