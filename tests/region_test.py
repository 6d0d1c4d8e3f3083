import numpy as np
import pytest
from scipy import ndimage
from skimage.morphology import skeletonize

from tprnet_jax.report.region import Region


def region(*rows):
    """Of a mask drawn with #."""
    return Region(np.array([[pixel == "#" for pixel in row] for row in rows]))


@pytest.mark.parametrize(
    ("rows", "betti"),
    [
        (["....", "...."], (0, 0)),
        (["####", "####"], (1, 0)),
        ([".....", ".###.", ".#.#.", ".###.", "....."], (1, 1)),
        (["#..", ".#.", "..."], (1, 0)),  # Foreground meets at corners.
        (["#..", "...", "#.."], (2, 0)),
        ([".#.", "#.#", ".#."], (1, 1)),
        (["##...", "#.#..", ".#.#.", "..##."], (1, 2)),  # The background does not.
        (["####", "#...", "####"], (1, 0)),  # A hole is not open to the image's border.
        (["#.#", "#.#", "#.#"], (2, 0)),
        (["#####", "#...#", "#.#.#", "#...#", "#####"], (2, 1)),
    ],
)
def test_betti_numbers_counted_by_hand(rows, betti):
    assert region(*rows).betti == betti


def test_an_edge_has_the_pixels_with_a_side_to_the_outside():
    square = region("....", ".###", ".###", ".###", "....")
    assert square.edge.data.tolist() == [
        [1, 1],
        [1, 2],
        [1, 3],
        [2, 1],
        [2, 3],
        [3, 1],
        [3, 2],
        [3, 3],
    ]
    corner = region("###", "###", "##.")  # The middle pixel has only a corner to the outside.
    assert [1, 1] not in corner.edge.data.tolist()


def test_the_border_of_the_image_is_no_wall_of_a_vessel():
    # A bar of three pixels that leaves the image below: one wall is one pixel above it.
    bar = region("......", "......", "######", "######", "######")
    assert bar.radii.tolist() == (bar.centreline[:, 0] - 1).tolist()
    assert len(bar.radii) > 0
    assert set(region("###", "###").radii) == {np.inf}


def test_what_is_cropped_away_does_not_matter():
    generator = np.random.default_rng(3)
    for _ in range(20):
        mask = np.zeros((60, 70), bool)
        top, left = generator.integers(0, 30, 2)
        blob = ndimage.gaussian_filter(generator.normal(size=(30, 40)), 3)
        mask[top : top + 30, left : left + 40] = blob > 0
        found = Region(mask)
        np.testing.assert_array_equal(found.centreline, np.argwhere(skeletonize(mask)))
        radii = ndimage.distance_transform_edt(mask)[tuple(found.centreline.T)]
        np.testing.assert_array_equal(found.radii, radii)
