import cv2
import jax
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from ml_collections import ConfigDict
from PIL import Image

from tprnet_jax.method import augment
from tprnet_jax.method.augment import EVERYTHING, NEUTRAL, Settings
from tprnet_jax.method.cascade import to_unit

RUN = jax.jit(augment.augment, static_argnums=0)
KEYS = jax.jit(augment.sample_keys)
UNIT = jax.jit(to_unit)


def _images(count, height, width, sigma=1.5):
    """Smooth images in [0.1, 0.9], `(count, height, width, 1)`."""
    noise = np.random.default_rng(0).normal(size=(count, height, width))
    smooth = scipy.ndimage.gaussian_filter(noise, (0, sigma, sigma))
    low, high = smooth.min((1, 2), keepdims=True), smooth.max((1, 2), keepdims=True)
    return (0.1 + 0.8 * (smooth - low) / (high - low))[..., None].astype(np.float32)


def _masks(images):
    return np.where(images > 0.5, 255, 0).astype(np.uint8)


def _run(settings, images, masks=None, epoch=0):
    """The augmented images and masks, `(count, height, width)` NumPy arrays."""
    count = len(images)
    masks = _masks(images) if masks is None else masks
    keys = KEYS(7, np.full(count, epoch, np.int32), np.arange(count, dtype=np.int32))
    images, masks = RUN(settings, images, masks, keys)
    assert (images.dtype, masks.dtype) == (np.float32, np.uint8)
    return np.asarray(images)[..., 0], np.asarray(masks)[..., 0]


def _grey(settings, images):
    """The images after a change of grey values, which must leave the masks alone."""
    after, masks = _run(settings, images)
    np.testing.assert_array_equal(masks, _masks(images)[..., 0])
    return after


def _only(**ranges):
    """Settings in which the given transformations always happen, with a fixed strength each."""
    fields = {f"p_{name}": 1.0 for name in ranges}
    return Settings(**fields, **{name: (value, value) for name, value in ranges.items()})


def _ramps(height, width):
    """An image whose grey value says the row, and one that says the column."""
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    return np.stack([rows / height, columns / width])[..., None].astype(np.float32)


# ---- Settings ------------------------------------------------------------------------------------


def test_settings_of_a_configuration():
    config = ConfigDict(Settings()._asdict())
    assert augment.settings(config) == Settings()
    config.p_rotation, config.rotation = 0.5, (-15.0, 15.0)
    assert augment.settings(config) == Settings(p_rotation=0.5, rotation=(-15.0, 15.0))
    assert isinstance(hash(augment.settings(config)), int)


def test_every_field_has_bounds_that_hold():
    assert set(augment.BOUNDS) == set(Settings._fields)
    for name, value in (EVERYTHING._asdict() | Settings()._asdict()).items():
        low, high = augment.BOUNDS[name]
        assert low <= np.min(value) <= np.max(value) <= high
    assert all(getattr(Settings(), f"p_{name}") == 0 for name in ("mirror", *NEUTRAL))
    assert all(getattr(EVERYTHING, f"p_{name}") > 0 for name in ("mirror", *NEUTRAL))


# ---- Keys ----------------------------------------------------------------------------------------


def test_a_key_is_a_function_of_seed_epoch_and_index():
    epoch, index = np.array([0, 0, 1, 1], np.int32), np.array([0, 1, 0, 1], np.int32)
    together = jax.random.key_data(KEYS(3, epoch, index))
    order = np.array([2, 0, 3, 1])
    np.testing.assert_array_equal(
        jax.random.key_data(KEYS(3, epoch[order], index[order])), together[order]
    )
    others = jax.random.key_data(KEYS(4, epoch, index))
    assert len(np.unique(np.concatenate([together, others]), axis=0)) == 8
    plain = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 1), 0)
    np.testing.assert_array_equal(jax.random.key_data(plain), together[2])


# ---- All together --------------------------------------------------------------------------------

# Ranges that leave out the strengths at which nothing changes.
OFTEN = Settings(
    **{f"p_{name}": 0.2 for name in ("mirror", *NEUTRAL)},
    scaling=(0.7, 0.9),
    shear=(5.0, 10.0),
    elastic=(0.05, 0.1),
    noise=(0.05, 0.1),
    brightness=(1.1, 1.25),
    contrast=(0.75, 0.9),
    low_resolution=(0.5, 0.8),
    gamma=(0.7, 0.9),
    inverted_gamma=(1.1, 1.5),
)


@pytest.fixture(scope="module")
def many():
    """600 small images, the last 50 of them flat, and what became of them."""
    images = np.random.default_rng(0).integers(0, 256, (600, 12, 12, 1), np.uint8)
    masks = _masks(UNIT(images))
    images[550:] = 128
    return images, masks, *_run(OFTEN, images, masks)


def test_what_is_not_drawn_passes_bit_for_bit(many):
    images, masks, images_after, masks_after = (x[:550] for x in many)
    same = (images_after == UNIT(images)[..., 0]).all((1, 2))
    chance = 0.8 ** (2 + len(NEUTRAL))  # None of eleven transformations and two axes.
    assert scipy.stats.binomtest(int(same.sum()), len(images), chance).pvalue > 0.01
    np.testing.assert_array_equal(masks_after[same], masks[same][..., 0])


def test_images_stay_in_range_and_masks_binary(many):
    _, _, images, masks = many
    assert np.isfinite(images).all()
    assert images.min() >= 0
    assert images.max() <= 1
    np.testing.assert_array_equal(np.unique(masks), [0, 255])


def test_a_sample_does_not_depend_on_its_batch(many):
    images, masks, images_after, masks_after = many
    order = np.random.default_rng(1).permutation(len(images))
    keys = KEYS(7, np.zeros(len(order), np.int32), order.astype(np.int32))
    shuffled, shuffled_masks = RUN(OFTEN, images[order], masks[order], keys)
    np.testing.assert_array_equal(shuffled[..., 0], images_after[order])
    np.testing.assert_array_equal(shuffled_masks[..., 0], masks_after[order])
    for index in range(20):
        one = slice(index, index + 1)
        key = KEYS(7, np.zeros(1, np.int32), np.full(1, index, np.int32))
        image, mask = RUN(OFTEN, images[one], masks[one], key)
        # Another size of batch is another program, which may round sums otherwise.
        np.testing.assert_allclose(image[..., 0], images_after[one], rtol=0, atol=1e-5)
        np.testing.assert_array_equal(mask[..., 0], masks_after[one])


def test_another_epoch_is_another_draw(many):
    images, masks, images_after, _ = many
    again, _ = _run(OFTEN, images, masks)
    np.testing.assert_array_equal(again, images_after)
    later, _ = _run(OFTEN, images, masks, epoch=1)
    assert (later != images_after).any((1, 2)).mean() > 0.9


def test_off_is_the_identity_and_draws_nothing():
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 1), np.uint8)
    images_after, masks_after = _run(Settings(), images, images)
    np.testing.assert_array_equal(images_after, UNIT(images)[..., 0])
    np.testing.assert_array_equal(masks_after, images[..., 0])
    np.testing.assert_array_equal(_run(Settings(), images_after[..., None])[0], images_after)
    keys = KEYS(7, np.zeros(2, np.int32), np.arange(2, dtype=np.int32))
    program = {
        settings: RUN.lower(settings, images, images, keys).as_text()
        for settings in (Settings(), Settings(p_mirror=0.5), Settings(p_rotation=0.5))
    }
    off, mirroring, rotating = program.values()
    assert "threefry" not in off
    assert "threefry" in mirroring
    assert "gather" not in mirroring
    assert "gather" in rotating


# ---- The ramp -----------------------------------------------------------------------------------


def test_probabilities_rise_evenly_to_their_settings():
    epoch = np.arange(6, dtype=np.int32)
    np.testing.assert_allclose(augment.ramp(Settings(ramp=4.0), epoch), [0, 0.25, 0.5, 0.75, 1, 1])
    np.testing.assert_array_equal(augment.ramp(Settings(), epoch), np.ones(6))


def test_a_share_of_the_probability_changes_that_share_of_the_images(many):
    """What is drawn at a share is drawn at more of it too, and with the same strength."""
    images, masks, changed, _ = (x[:550] for x in many)
    plain = UNIT(images)[..., 0]
    settings = Settings(p_gamma=0.8, gamma=(0.7, 0.9))
    keys = KEYS(7, np.zeros(len(images), np.int32), np.arange(len(images), dtype=np.int32))
    run = {share: RUN(settings, images, masks, keys, share)[0][..., 0] for share in (0.0, 0.5, 1.0)}
    np.testing.assert_array_equal(run[0.0], plain)
    bent = {share: (after != plain).any((1, 2)) for share, after in run.items()}
    assert scipy.stats.binomtest(int(bent[0.5].sum()), len(images), 0.4).pvalue > 0.01
    assert scipy.stats.binomtest(int(bent[1.0].sum()), len(images), 0.8).pvalue > 0.01
    np.testing.assert_array_equal(run[0.5][bent[0.5]], run[1.0][bent[0.5]])
    half = RUN(Settings(p_mirror=1.0), images, masks, keys, 0.5)[0][..., 0]
    flips = [(half == np.flip(plain, axes)).all((1, 2)).sum() for axes in ((), 1, 2, (1, 2))]
    assert scipy.stats.chisquare(flips).pvalue > 0.01
    np.testing.assert_array_equal(RUN(OFTEN, images, masks, keys, 1.0)[0][..., 0], changed)


def test_whether_anything_happens_at_all():
    assert not augment.happens(Settings(ramp=5.0, gamma=(0.5, 2.0)))
    assert augment.happens(Settings(p_noise=0.1))


# ---- Draws ---------------------------------------------------------------------------------------


def test_brightness_multiplies_as_often_and_as_much_as_asked():
    settings = Settings(p_brightness=0.3, brightness=(0.5, 1.2))
    factors = _grey(settings, np.full((2000, 1, 1, 1), 0.5, np.float32)).ravel() / 0.5
    drawn = factors[factors != 1]
    assert scipy.stats.binomtest(len(drawn), 2000, 0.3).pvalue > 0.01
    assert scipy.stats.binomtest(int((drawn < 1).sum()), len(drawn), 0.5).pvalue > 0.01
    below, above = drawn[drawn < 1], drawn[drawn > 1]
    assert scipy.stats.kstest((below - 0.5) / 0.5, "uniform").pvalue > 0.01
    assert scipy.stats.kstest((above - 1) / 0.2, "uniform").pvalue > 0.01
    brighter = _grey(settings, np.full((2000, 1, 1, 1), 0.9, np.float32)).ravel()
    np.testing.assert_allclose(brighter, np.minimum(0.9 * factors, 1), atol=1e-6)


def test_angles_are_uniform():
    rows, columns = np.repeat(_ramps(5, 5)[:, None], 1000, axis=1)
    settings = Settings(p_rotation=1.0)
    (down, _), (across, _) = _run(settings, rows), _run(settings, columns)
    sine = down[:, 2, 3] - down[:, 2, 1]  # Per two columns and a fifth of the grey range.
    cosine = across[:, 2, 3] - across[:, 2, 1]
    angles = np.arctan2(sine, cosine) / np.pi
    assert scipy.stats.kstest(angles, scipy.stats.uniform(-1, 2).cdf).pvalue > 0.01


def test_mirroring_is_exact_and_even():
    image = _images(1, 4, 6)
    images, masks = _run(Settings(p_mirror=0.5), np.repeat(image, 400, axis=0))
    counts = []
    for axes in ((), (0,), (1,), (0, 1)):
        expected = np.flip(image[0, ..., 0], axes)
        found = (images == expected).all((1, 2))
        assert (masks[found] == _masks(expected)).all()
        counts.append(int(found.sum()))
    assert sum(counts) == 400
    assert scipy.stats.chisquare(counts).pvalue > 0.01


# ---- Space ---------------------------------------------------------------------------------------


def test_a_quarter_turn_is_rot90():
    image = _images(1, 16, 16)
    images, masks = _run(_only(rotation=90.0), image)
    np.testing.assert_allclose(images[0], np.rot90(image[0, ..., 0]), atol=1e-5)
    np.testing.assert_array_equal(masks[0], np.rot90(_masks(image)[0, ..., 0]))


def test_scaling_about_the_centre_by_hand():
    image = np.array([1, 2, 3, 4, 5], np.float32).reshape(1, 1, 5, 1) / 8
    mask = np.array([0, 0, 0, 255, 0], np.uint8).reshape(1, 1, 5, 1)
    images, masks = _run(_only(scaling=2.0), image, mask)
    np.testing.assert_array_equal(images[0, 0] * 8, [2, 2.5, 3, 3.5, 4])
    np.testing.assert_array_equal(masks[0, 0], [0, 0, 0, 255, 255])


def test_rotation_scaling_and_shear_together_against_scipy():
    images = _images(3, 25, 32)
    after, masks = _run(_only(rotation=30.0, scaling=0.8, shear=10.0), images)
    angle, slope = np.deg2rad(30), np.tan(np.deg2rad(10))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    forward = turn @ np.array([[1, 0], [slope, 1]]) * 0.8
    matrix = np.linalg.inv(forward)
    centre = np.array([12, 15.5])
    for image, mask, found, found_mask in zip(images, _masks(images), after, masks, strict=True):
        keywords = {"offset": centre - matrix @ centre, "mode": "grid-constant"}
        expected = scipy.ndimage.affine_transform(image[..., 0], matrix, order=1, **keywords)
        np.testing.assert_allclose(found, expected, atol=1e-5)
        expected = scipy.ndimage.affine_transform(mask[..., 0], matrix, order=0, **keywords)
        np.testing.assert_array_equal(found_mask, expected)


def test_elastic_displacement():
    """Read off ramps, whose interpolation is exact; the spread is that of PIL's interpolation."""
    size, count = 32, 200
    settings = _only(elastic=0.1)
    found = []
    for axis, ramp in enumerate(_ramps(size, size)):
        images, _ = _run(settings, np.repeat(ramp[None], count, axis=0))
        found.append((images - ramp[..., 0])[:, 6:-6, 6:-6] * size)
        change = np.diff(images * size, axis=1 + axis)[:, 6:-6, 6:-6]
        assert change.min() > 0  # Nothing folds.
    nodes = Image.fromarray(np.eye(8, dtype=np.float32))
    weights = np.asarray(nodes.resize((8, size), Image.Resampling.BICUBIC))
    share = np.square(weights).sum(axis=1)
    expected = 0.1 * (size / 8) * np.sqrt(np.outer(share, share))[6:-6, 6:-6]
    assert abs(np.mean(found)) < 0.02
    np.testing.assert_allclose(np.std(found, axis=(0, 1)) / expected, 1, atol=0.2)
    assert np.std(found) == pytest.approx(np.sqrt(np.square(expected).mean()), rel=0.03)
    assert abs(np.corrcoef(found[0].ravel(), found[1].ravel())[0, 1]) < 0.05


def test_image_and_mask_stay_together():
    images = _images(200, 32, 32, sigma=4)
    after, masks = _run(_only(elastic=0.1), (images > 0.5).astype(np.float32))
    square = np.ones((1, 3, 3))
    grown = scipy.ndimage.binary_dilation(masks > 0, square)
    shrunk = scipy.ndimage.binary_erosion(masks > 0, square)
    assert (shrunk <= (after > 0.5)).all()
    assert ((after > 0.5) <= grown).all()
    assert (masks != _masks(images)[..., 0]).any((1, 2)).mean() > 0.9


# ---- Grey values ---------------------------------------------------------------------------------


def test_noise_has_a_share_of_the_images_deviation():
    images = np.full((3, 64, 64, 1), 0.25, np.float32)
    images[:, 32:] = 0.75  # Its deviation is 0.25.
    noise = _grey(_only(noise=0.2), images) - images[..., 0]
    assert noise.std() == pytest.approx(0.05, rel=0.03)
    assert abs(noise.mean()) < 0.05 * 4 / np.sqrt(noise.size)
    assert scipy.stats.kstest(noise[0].ravel() / 0.05, "norm").pvalue > 0.01
    assert abs(np.corrcoef(noise.reshape(3, -1))[0, 1]) < 0.06
    assert abs(np.corrcoef(noise[:, :, 1:].ravel(), noise[:, :, :-1].ravel())[0, 1]) < 0.04


def test_blur_against_scipy():
    sigma = 2.5  # It reaches over 10 pixels, past the image's height.
    images = np.random.default_rng(0).random((2, 9, 30, 1)).astype(np.float32)
    expected = scipy.ndimage.gaussian_filter(images[..., 0], (0, sigma, sigma), mode="reflect")
    np.testing.assert_allclose(_grey(_only(blur=sigma), images), expected, atol=1e-6)


def test_contrast_keeps_the_mean_and_the_range():
    images = _images(2, 6, 5)[..., 0]
    mean, low, high = (f(images, axis=(1, 2), keepdims=True) for f in (np.mean, np.min, np.max))
    expected = np.clip(mean + 1.25 * (images - mean), low, high)
    assert (expected == high).sum() > 2
    found = _grey(_only(contrast=1.25), images[..., None])
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_low_resolution_against_opencv():
    images = np.random.default_rng(0).random((2, 20, 33, 1)).astype(np.float32)
    found = _grey(_only(low_resolution=0.7), images)
    for image, after in zip(images[..., 0], found, strict=True):
        coarse = cv2.resize(image, (23, 14), interpolation=cv2.INTER_NEAREST_EXACT)
        expected = cv2.resize(coarse, (33, 20), interpolation=cv2.INTER_LINEAR)
        # Positions up to 23 are rounded to 1e-6, and so is the share of each neighbour.
        np.testing.assert_allclose(after, expected, atol=2e-6)


def test_gamma_of_the_negative_then_of_the_image():
    images = _images(2, 12, 10)
    found = _grey(_only(inverted_gamma=1.5, gamma=0.7), images)
    for image, after in zip(images[..., 0].astype(float), found, strict=True):
        expected = _power_law(1 - _power_law(1 - image, 1.5), 0.7)
        np.testing.assert_allclose(after, np.clip(expected, 0, 1), atol=1e-5)


def _power_law(image, gamma):
    """On the image's own range, with its mean and standard deviation restored."""
    bent = ((image - image.min()) / np.ptp(image)) ** gamma
    return image.mean() + image.std() * (bent - bent.mean()) / bent.std()
