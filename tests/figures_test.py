import numpy as np
import pytest

from tprnet_jax.report import figures


def crossing_masks():
    """Truth on row 1, prediction on column 1: one true positive, 3 false of each kind."""
    truth, prediction = np.zeros((2, 4, 4), bool)
    truth[1] = True
    prediction[:, 1] = True
    return prediction, truth


def test_overlay_paints_errors_in_the_colours_of_the_paper():
    prediction, truth = crossing_masks()
    picture = figures.overlay(np.full((4, 4), 0.5, np.float32), prediction, truth)
    assert picture.dtype == np.uint8
    red, green, blue = picture.transpose(2, 0, 1).astype(int)
    assert picture[1, 1].tolist() == [255, 255, 255]
    false_positive, false_negative = prediction & ~truth, truth & ~prediction
    assert (red > 100 + np.maximum(green, blue))[false_positive].all()
    assert (blue > 50 + np.maximum(red, green))[false_negative].all()


def test_overlay_leaves_the_rest_grey_in_the_order_of_the_image():
    prediction, truth = crossing_masks()
    image = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    picture = figures.overlay(image, prediction, truth)[~(prediction | truth)]
    assert (picture == picture[:, :1]).all()
    assert (np.diff(picture[:, 0].astype(int)) > 0).all()


def test_overlay_without_truth_outlines_the_mask_from_outside():
    prediction = np.zeros((7, 7), bool)
    prediction[2:5, 3] = True
    image = np.full((7, 7), 0.2, np.float32)  # 51 of 255
    picture = figures.overlay(image, prediction)
    ring = np.zeros((7, 7), bool)
    ring[1:6, 2:5] = True
    assert (picture[ring & ~prediction] == figures.PREDICTION).all()
    assert (picture[~ring] == 51).all()
    # A quarter of the way from the grey 51 to the orange (230, 159, 0).
    assert (picture[prediction] == (96, 78, 38)).all()


def test_overlay_keeps_the_vessel_readable_under_the_tint():
    image = np.tile(np.linspace(0, 1, 32, dtype=np.float32), (3, 1))
    picture = figures.overlay(image, np.ones((3, 32), bool))
    assert (np.diff(picture.astype(int), axis=1) > 0).all()


def test_overlay_clips_what_is_out_of_range():
    image = np.array([[-0.5, 1.5]], np.float32)
    picture = figures.overlay(image, np.zeros((1, 2), bool))
    assert picture.tolist() == [[[0, 0, 0], [255, 255, 255]]]


@pytest.mark.parametrize(("height", "width", "factor"), [(4, 4, 64), (100, 130, 3), (300, 256, 1)])
def test_panel_is_a_row_of_enlarged_tiles(height, width, factor):
    generator = np.random.default_rng(0)
    image = generator.random((height, width), np.float32)
    truth, final = generator.random((2, height, width)) < 0.3
    picture = figures.panel(image, truth, {"global": truth, "final": final}, "7")
    assert picture.dtype == np.uint8
    step = width * factor + 4
    assert picture.shape[1] == 4 * step - 4
    top = (picture.shape[0] - height * factor) // 2  # the label above, the legend below
    rows = slice(top, top + height * factor)
    tiles = [picture[rows, i * step : i * step + width * factor] for i in range(4)]
    grey = np.rint(image * 255)[..., None].repeat(3, -1)
    expected = [
        grey,
        truth[..., None].repeat(3, -1) * 255,
        figures.overlay(image, truth, truth),
        figures.overlay(image, final, truth),
    ]
    for tile, small in zip(tiles, expected, strict=True):
        np.testing.assert_array_equal(tile, np.kron(small, np.ones((factor, factor, 1))))


def test_panel_names_its_parts():
    # What is written can only be told apart by its pixels: each text changes its own strip alone.
    image, mask = np.zeros((256, 256), np.float32), np.ones((256, 256), bool)
    label = slice(0, 256 // 11)
    first = figures.panel(image, mask, {"global": mask}, "one")
    second = figures.panel(image, mask, {"final": mask}, "two")
    third = figures.panel(image, mask, {"global": ~mask}, "one")
    differs = (first != second).any(axis=(0, 2))
    assert differs[:256].any()
    assert not differs[260:516].any()
    assert differs[520:].any()
    assert (first != third)[label, 520:].any()  # Dice 1.000 and 0.000
    legend = first[-(256 // 11) :].reshape(-1, 3).tolist()
    colours = (figures.TRUE_POSITIVE, figures.FALSE_POSITIVE, figures.FALSE_NEGATIVE)
    side = 256 // 11 // 2
    assert [legend.count(list(colour)) for colour in colours] == [side * side] * 3


@pytest.mark.parametrize("name", ["truth", "final"])
def test_a_mask_of_another_shape_is_quoted(name):
    both = dict.fromkeys(("truth", "final"), np.zeros((4, 5), bool))
    both[name] = np.zeros((5, 4), bool)
    with pytest.raises(ValueError, match=rf"{name} .*\(4, 5\).*\(5, 4\)"):
        figures.panel(np.zeros((4, 5)), both["truth"], {"final": both["final"]}, "")


def test_a_mask_of_bytes_is_refused():
    with pytest.raises(ValueError, match=r"prediction must be bool .* not uint8"):
        figures.overlay(np.zeros((4, 5)), np.zeros((4, 5), np.uint8))


def test_an_image_of_bytes_is_refused():
    with pytest.raises(ValueError, match=r"floating point .* not uint8 \(4, 5\)"):
        figures.overlay(np.zeros((4, 5), np.uint8), np.zeros((4, 5), bool))


@pytest.mark.parametrize(
    ("dice", "count", "expected"),
    [
        ([0.1, 0.5, 0.3, 0.4, 0.2], 3, [1, 2, 0]),
        ([0.1, 0.5, 0.3, 0.4, 0.2], 5, [1, 3, 2, 4, 0]),
        ([0.1, 0.5, 0.3], 8, [1, 2, 0]),
        ([0.7, 0.7, 0.9, 0.7], 4, [2, 0, 1, 3]),  # ties by index
        ([0.2, 0.9], 1, [1]),
        ([], 8, []),
    ],
)
def test_choose(dice, count, expected):
    assert figures.choose(dice, count) == expected


def test_choose_spreads_over_all_ranks():
    dice = [rank / 200 for rank in range(200)]
    chosen = figures.choose(dice, 8)
    assert chosen[0] == 199
    assert chosen[-1] == 0
    assert set(-np.diff(chosen)) <= {28, 29}  # 199 ranks in 7 steps
