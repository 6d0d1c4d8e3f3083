"""The whole way from real angiograms to masks, here and by PyTorch and OpenCV, after a training."""

import os

import jax
import numpy as np
import pytest
from golden_test import released_config
from released_test import parameters_here, read_split

from tprnet_jax import config as configuration
from tprnet_jax.method import cascade, inference, topology

torch = pytest.importorskip("torch")

import make_golden  # noqa: E402, these two need PyTorch

from tprnet_jax.peer import released  # noqa: E402

NARROW = ((8, 16, 32, 64, 64, 64, 64, 64), (8, 16, 32, 64, 64, 64, 64), (8, 16, 32, 64))
SIZES = (448, 64, 64)


def crop_vessels(image, mask, side=256):
    """A square around the middle of the vessels; it keeps the scale and trains faster."""
    middle = np.argwhere(mask).mean(axis=0).astype(int)
    row, column = np.clip(middle - side // 2, 0, np.array(mask.shape) - side)
    return tuple(
        make_golden.to_tensor(array[row : row + side, column : column + side])
        for array in (image, mask)
    )


@pytest.fixture(scope="module")
def trained_model():
    """Narrow networks after a short training, FocalNet in the last third only."""
    torch.set_num_threads(os.cpu_count())
    torch.manual_seed(0)
    model = released.Released(*NARROW, window=192, patch=64, pixels_per_patch=64)
    model.apply(type(model.global_net).initialize)
    pairs = [crop_vessels(*pair) for pair in read_split("train", 60)]
    optim = released.Optim(epochs=10, momentum=0.9, learning_rate=0.1)
    released.train(model, [pairs[:40], pairs[40:]], optim)
    model.window = SIZES[0]
    return model


@pytest.mark.arcade
def test_the_whole_way_on_20_real_images(trained_model):
    config = released_config(*NARROW, SIZES)
    system, params = configuration.cascade(config), parameters_here(config, trained_model)
    coarse_logits = jax.jit(cascade.coarse_logits, static_argnums=0)
    unlike, patches, vessels = [], [], []
    for image, _ in read_split("val", 20):
        with torch.no_grad():
            output = trained_model(make_golden.to_tensor(image), released.fuse_on_canvas)
        batch = image[None, ..., None]
        coarse = coarse_logits(system, params, cascade.to_unit(jax.numpy.asarray(batch)))
        assert tuple(coarse.origin[0]) == output.coarse.window
        vessel, corner = jax.device_get(cascade.sampling_mask(system, coarse))
        centreline = topology.centreline(vessel[0], system.centreline)
        np.testing.assert_array_equal(centreline, output.places.centreline > 0)
        _, corners = cascade.sample_patches(system, vessel, corner, image.shape)
        np.testing.assert_array_equal(corners, output.places.corners)
        final = inference.predict(system, params, batch)["final"][0] > 0.5
        expected = released.is_vessel(output.final)
        unlike.append((final != expected).sum())
        patches.append(len(corners))
        vessels.append(expected.mean())
    print(f"\nunlike pixels: {sum(unlike)} of {20 * 512**2}; patches: {patches}")
    print(f"vessels, %: {np.round(100 * np.array(vessels), 1)}")
    assert min(patches) > 1
    assert 0.005 < min(vessels) <= max(vessels) < 0.3
    assert sum(unlike) <= 20
