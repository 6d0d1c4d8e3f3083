import json
import math

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import KDTree

from tprnet_jax.report import graph

# ---- Masks whose truth is known ------------------------------------------------------------------


def tube(shape, line, radii, spacing=(1.0, 1.0)):
    """Pixels whose centre is in mm no farther from a line than the radius at the nearest point."""
    centres = np.argwhere(np.ones(shape, bool)) * spacing
    distances, nearest = KDTree(line).query(centres, distance_upper_bound=np.max(radii) + 1)
    radii = np.append(np.broadcast_to(radii, len(line)), 0)  # What is farther has no nearest point.
    return (distances <= radii[nearest]).reshape(shape)


def union(shape, branches, spacing=(1.0, 1.0)):
    return np.any([tube(shape, line, radius, spacing) for line, radius in branches], axis=0)


def straight(start, degrees, length):
    """A line (2001, 2) of (row, column) from a point, `degrees` from the columns to the rows."""
    angle = math.radians(degrees)
    direction = np.array([math.sin(angle), math.cos(angle)])
    return start + np.linspace(0, length, 2001)[:, None] * direction


def arc(centre, radius, first, last):
    angles = np.radians(np.linspace(first, last, 4001))
    return centre + radius * np.stack([np.sin(angles), np.cos(angles)], axis=1)


def sine(start, degrees, length, amplitude, period):
    along = np.linspace(0, length, 4001)
    wave = np.stack([amplitude * np.sin(2 * np.pi * along / period), along], axis=1)
    cosine, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return start + wave @ np.array([[cosine, -sin], [sin, cosine]])


def length_of(line):
    return np.linalg.norm(np.diff(line, axis=0), axis=1).sum()


def only_edge(tree):
    (edge,) = tree["edges"]
    return edge


def kinds(tree):
    return sorted(node["kind"] for node in tree["nodes"])


def place(node):
    return node["row"], node["column"]


def edge_to(tree, tip):
    """The edge that ends at the node nearest to a point."""
    node = min(tree["nodes"], key=lambda node: math.dist(place(node), tip))
    (edge,) = [edge for edge in tree["edges"] if node["id"] in edge["nodes"]]
    return edge


def assert_measures(edge, length, mean, least=None, unit=""):
    assert edge["length" + unit] == pytest.approx(length, rel=0.02)
    assert edge["mean_radius" + unit] == pytest.approx(mean, rel=0.02)
    if least is not None:
        assert edge["least_radius" + unit] == pytest.approx(least, rel=0.02)


# ---- One vessel ----------------------------------------------------------------------------------

# At one place, unlike in the mean, a vessel fills whole pixels: its width is known to half of one.
ONE_PLACE = 0.25
ANGLES = [11, 23, 37, 52, 68, 79, 101, 154]
TUBES = {
    "arc": arc((70.2, 60.7), 45, 10, 200),
    "sine": sine((40.2, 20.4), 20, 100, 8, 60),
    "hook": arc((70.2, 60.7), 22, 10, 280),
}


@pytest.mark.parametrize("degrees", ANGLES)
def test_a_straight_tube_is_one_edge_between_the_ends_of_its_axis(degrees):
    line = straight((75.3, 75.6), degrees, 60)
    tree = graph.vessel_tree(tube((150, 150), line, 8))
    assert kinds(tree) == ["end", "end"]
    assert_measures(only_edge(tree), 60, 8, 8)
    for tip in (line[0], line[-1]):
        assert min(math.dist(place(node), tip) for node in tree["nodes"]) < 0.6


@pytest.mark.parametrize("radius", [2.5, 3.5, 6])
@pytest.mark.parametrize("name", TUBES)
def test_a_bent_tube_is_measured_along_its_axis(name, radius):
    line = TUBES[name]
    edge = only_edge(graph.vessel_tree(tube((140, 140), line, radius)))
    assert_measures(edge, length_of(line), radius, radius if radius == 6 else None)
    assert edge["least_radius"] == pytest.approx(radius, abs=ONE_PLACE)


@pytest.mark.parametrize("degrees", [0, 90])
def test_a_tube_along_the_pixels_is_half_as_wide_as_the_rows_it_fills(degrees):
    # A radius of 4.2 about a pixel's centre covers 9 rows, as any from 4 to 5 does.
    edge = only_edge(graph.vessel_tree(tube((130, 130), straight((20, 20), degrees, 80), 4.2)))
    assert_measures(edge, 80, 4.5, 4.5)


@pytest.mark.parametrize("degrees", [17, 33, 62])
def test_a_taper(degrees):
    line = straight((30.2, 20.4), degrees, 100)
    radii = np.linspace(8, 5, len(line))
    edge = only_edge(graph.vessel_tree(tube((160, 160), line, radii)))
    assert_measures(edge, 100, 6.5)
    assert edge["least_radius"] == pytest.approx(5, abs=ONE_PLACE)


@pytest.mark.parametrize("degrees", [17, 33, 62])
@pytest.mark.parametrize("width", [12, 16])
def test_a_stenosis_is_the_least_radius(degrees, width):
    line = straight((30.2, 30.4), degrees, 120)
    radii = 8 - 4 * np.exp(-0.5 * (np.linspace(-60, 60, len(line)) / width) ** 2)
    edge = only_edge(graph.vessel_tree(tube((190, 190), line, radii)))
    assert_measures(edge, 120, radii.mean(), 4)


@pytest.mark.parametrize("radius", [2.5, 6])
def test_a_ring_is_one_edge_from_its_only_node_to_itself(radius):
    tree = graph.vessel_tree(tube((120, 120), arc((60.3, 60.8), 35, 0, 360), radius))
    assert kinds(tree) == ["loop"]
    edge = only_edge(tree)
    assert edge["nodes"] == [0, 0]
    assert_measures(edge, 2 * math.pi * 35, radius, radius if radius == 6 else None)
    distances = np.linalg.norm(np.array(edge["path"]) - (60.3, 60.8), axis=1)
    np.testing.assert_allclose(distances, 35, atol=0.7)


def test_the_path_runs_along_the_axis_from_node_to_node():
    line = TUBES["sine"]
    tree = graph.vessel_tree(tube((140, 140), line, 4))
    edge = only_edge(tree)
    path = np.array(edge["path"])
    assert KDTree(line).query(path)[0].max() < 0.6
    assert edge["length"] == pytest.approx(length_of(path), abs=0.1)
    np.testing.assert_allclose(np.linalg.norm(np.diff(path, axis=0), axis=1), 1, atol=0.05)
    first, last = (place(tree["nodes"][node]) for node in edge["nodes"])
    assert (*first, *last) == pytest.approx((*path[0], *path[-1]), abs=0.02)


# ---- Millimetres ---------------------------------------------------------------------------------

SPACING = (0.3, 0.2)
IN_MM = {
    "straight, 20 degrees": straight((6.1, 6.3), 20, 16),
    "straight, 65 degrees": straight((6.1, 6.3), 65, 16),
    "arc": arc((14, 12), 8, 10, 200),
    "sine": sine((8, 6), 20, 18, 1, 15),
}


@pytest.mark.parametrize("name", IN_MM)
def test_pixels_that_are_not_square_are_measured_in_mm(name):
    line = IN_MM[name]
    mask = tube((90, 150), line, 1.8, SPACING)
    tree = graph.vessel_tree(mask, SPACING)
    assert tree["spacing_mm"] == [0.3, 0.2]
    edge = only_edge(tree)
    assert_measures(edge, length_of(line), 1.8, 1.8, "_mm")
    assert edge["length"] == pytest.approx(length_of(line / SPACING), rel=0.02)


def test_a_bifurcation_in_pixels_that_are_not_square():
    middle = np.array([14.2, 15.3])
    branches = [
        (straight(middle, degrees, 9), r) for degrees, r in ((185, 1.5), (50, 1.2), (-20, 1))
    ]
    tree = graph.vessel_tree(union((95, 150), branches, SPACING), SPACING)
    assert kinds(tree) == ["end"] * 3 + ["junction"]
    for line, radius in branches:
        assert_measures(edge_to(tree, line[-1] / SPACING), 9, radius, unit="_mm")


def test_square_pixels_in_mm_are_pixels_times_their_size():
    mask = tube((140, 140), TUBES["sine"], 4)
    plain, scaled = (
        only_edge(graph.vessel_tree(mask)),
        only_edge(graph.vessel_tree(mask, (0.5, 0.5))),
    )
    for name in ("length", "mean_radius", "least_radius"):
        assert scaled[name + "_mm"] == pytest.approx(plain[name] / 2, rel=2e-3)
        assert name + "_mm" not in plain


# ---- Trees ---------------------------------------------------------------------------------------

# The directions of the branches in degrees, and their radii.
FORKS = {
    "even": ((187, 5), (37, 4), (-23, 4)),
    "narrow": ((213, 4), (53, 3), (13, 3)),
    "side branch": ((238, 6), (58, 5), (-2, 4)),
    "right angle": ((200, 4), (20, 3.5), (110, 3)),
    "wide": ((261, 8), (141, 6.5), (21, 6)),
}


@pytest.mark.parametrize("name", FORKS)
def test_branches_are_measured_from_where_their_axes_meet(name):
    middle = np.array([100.3, 99.6])
    branches = [(straight(middle, degrees, 60), radius) for degrees, radius in FORKS[name]]
    tree = graph.vessel_tree(union((200, 200), branches))
    assert kinds(tree) == ["end"] * 3 + ["junction"]
    (junction,) = [node for node in tree["nodes"] if node["kind"] == "junction"]
    assert math.dist(place(junction), middle) < 1
    for line, radius in branches:
        edge = edge_to(tree, line[-1])
        assert junction["id"] in edge["nodes"]
        assert_measures(edge, 60, radius, radius if radius >= 6 else None)


def binary_tree():
    """Nine branches with five leaves: name, line and radius of each."""
    trunk = straight((20.2, 30.4), 35, 70)
    left, right = straight(trunk[-1], 62, 75), straight(trunk[-1], 5, 80)
    leaves = [
        straight(left[-1], 95, 55),
        straight(left[-1], 30, 70),
        straight(right[-1], -28, 60),
    ]
    middle = straight(right[-1], 33, 65)
    leaves += [straight(middle[-1], 62, 50), straight(middle[-1], 4, 50)]
    inner = [(trunk, 7), (left, 5), (right, 5.5), (middle, 4)]
    return inner, list(zip(leaves, (4, 3.5, 3.5, 3, 3), strict=True))


def edge_between(tree, *ends):
    nodes = [min(tree["nodes"], key=lambda node: math.dist(place(node), end))["id"] for end in ends]
    (edge,) = [edge for edge in tree["edges"] if sorted(edge["nodes"]) == sorted(nodes)]
    return edge


def test_a_tree_with_five_leaves():
    inner, leaves = binary_tree()
    tree = graph.vessel_tree(union((280, 330), inner + leaves))
    assert kinds(tree) == ["end"] * 6 + ["junction"] * 4
    assert len(tree["edges"]) == 9
    for line, radius in inner + leaves:
        assert_measures(edge_between(tree, line[0], line[-1]), length_of(line), radius)


def letter_h(degrees=20):
    """Two posts, a bar between their middles: the bar first, then the four halves."""
    bar = straight((110.3, 80.6), degrees, 60)
    halves = [straight(end, degrees + turn, 50) for end in (bar[0], bar[-1]) for turn in (80, 260)]
    return [(bar, 3.5), *((half, 4) for half in halves)]


def test_two_vessels_with_a_bridge():
    branches = letter_h()
    tree = graph.vessel_tree(union((230, 230), branches))
    assert kinds(tree) == ["end"] * 4 + ["junction"] * 2
    assert len(tree["edges"]) == 5
    for line, radius in branches:
        assert_measures(edge_between(tree, line[0], line[-1]), length_of(line), radius)


@pytest.mark.parametrize("angle", [45, 60, 90])
def test_crossing_vessels_meet_in_one_junction(angle):
    middle = np.array([90.3, 90.6])
    turns = (15, 195, 15 + angle, 195 + angle)
    branches = [(straight(middle, turn, 60), 4) for turn in turns]
    tree = graph.vessel_tree(union((180, 180), branches))
    assert kinds(tree) == ["end"] * 4 + ["junction"]
    for line, radius in branches:
        assert_measures(edge_to(tree, line[-1]), 60, radius)


def test_a_vessel_around_a_gap_stays_a_ring_of_its_tree():
    ring = arc((70.3, 70.6), 25, 0, 360)
    tail = straight(ring[0], 0, 50)
    tree = graph.vessel_tree(union((140, 170), [(ring, 4), (tail, 4)]))
    assert kinds(tree) == ["end", "junction"]
    loop, stem = sorted(tree["edges"], key=lambda edge: len(set(edge["nodes"])))
    assert len(set(loop["nodes"])) == 1
    assert_measures(loop, 2 * math.pi * 25, 4)
    assert_measures(stem, 50, 4)


# ---- What must not matter ------------------------------------------------------------------------


def assert_same(tree, other):
    assert kinds(tree) == kinds(other)
    lengths, others = (sorted(edge["length"] for edge in each["edges"]) for each in (tree, other))
    assert lengths == pytest.approx(others, rel=0.01)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_turning_the_picture_does_not_matter(turns):
    mask = union((230, 230), letter_h())
    assert_same(graph.vessel_tree(mask), graph.vessel_tree(np.rot90(mask, turns)))


def test_mirroring_the_picture_does_not_matter():
    mask = union((230, 230), letter_h())
    assert_same(graph.vessel_tree(mask), graph.vessel_tree(mask[:, ::-1]))


def test_shifting_the_picture_shifts_the_tree():
    mask = union((230, 230), letter_h())
    tree, shifted = graph.vessel_tree(mask), graph.vessel_tree(np.pad(mask, ((7, 0), (11, 0))))
    assert_same(tree, shifted)
    for node, moved in zip(tree["nodes"], shifted["nodes"], strict=True):
        assert place(moved) == pytest.approx((node["row"] + 7, node["column"] + 11), abs=0.02)


def test_equal_masks_give_equal_trees():
    mask = union((230, 230), letter_h())
    assert graph.vessel_tree(mask) == graph.vessel_tree(mask.copy())


def test_the_mask_is_left_alone():
    mask = union((230, 230), letter_h())
    mask[mask.nonzero()[0][50], mask.nonzero()[1][50]] = False
    before = mask.copy()
    graph.vessel_tree(mask)
    np.testing.assert_array_equal(mask, before)


def test_seams_are_no_rings_but_holes_are():
    line = straight((30.3, 20.6), 20, 90)
    mask = tube((90, 130), line, 6)
    row, column = line[1000].round().astype(int)
    mask[row, column - 6 : column + 7] = False  # 13 pixels, as between two polygons
    assert_measures(only_edge(graph.vessel_tree(mask)), 90, 6)
    mask[row - 1 : row + 1, column - 4 : column + 5] = False
    assert kinds(graph.vessel_tree(mask)) == ["end", "end", "junction", "junction"]


@pytest.mark.parametrize("seed", range(4))
def test_rough_walls_grow_no_branches(seed):
    mask = union((230, 230), letter_h())
    generator = np.random.default_rng(seed)
    wall = ndimage.binary_dilation(mask) & ndimage.binary_dilation(~mask)
    rough = mask ^ (wall & (generator.random(mask.shape) < 0.2))
    parts, _ = ndimage.label(rough)
    tree = graph.vessel_tree(parts == np.bincount(parts[mask])[1:].argmax() + 1)
    assert kinds(tree) == ["end"] * 4 + ["junction"] * 2
    assert len(tree["edges"]) == 5


def test_a_side_branch_counts_from_a_radius_beyond_the_wall():
    trunk = (straight((60, 15), 0, 110), 8.5)
    counts = []
    for reach in (15, 20):
        mask = union((100, 140), [trunk, (straight((60, 70), -90, reach - 2.5), 2.5)])
        counts.append(len(graph.vessel_tree(mask)["edges"]))
    assert counts == [1, 3]


# ---- Small and odd masks -------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (1, 1), (64, 48)])
def test_nothing_has_no_tree(shape):
    empty = {"unit": "pixel", "spacing_mm": None, "nodes": [], "edges": []}
    assert graph.vessel_tree(np.zeros(shape, bool)) == empty


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (5, 5), (64, 64), (60, 80)])
def test_a_full_mask_is_one_end_in_its_middle(shape):
    tree = graph.vessel_tree(np.ones(shape, bool))
    assert tree["edges"] == []
    middle = {"row": (shape[0] - 1) / 2, "column": (shape[1] - 1) / 2}
    assert tree["nodes"] == [{"id": 0, **middle, "kind": "end"}]


def test_discs_are_ends_without_edges():
    mask = tube((50, 90), [(20, 30)], 9) | tube((50, 90), [(20, 65)], 4)
    tree = graph.vessel_tree(mask)
    assert tree["edges"] == []
    assert [place(node) for node in tree["nodes"]] == [(20, 30), (20, 65)]
    assert kinds(tree) == ["end", "end"]


def test_lines_one_pixel_wide():
    mask = np.zeros((40, 60), bool)
    mask[10, 5:55] = True
    np.fill_diagonal(mask[15:35, 20:40], True)
    flat, steep = sorted(graph.vessel_tree(mask)["edges"], key=lambda edge: -edge["length"])
    # From the first pixel's centre to the last one's.
    assert_measures(flat, 49, 0.5, 0.5)
    assert steep["length"] == pytest.approx(19 * math.sqrt(2), rel=0.02)


def test_a_vessel_that_leaves_the_picture_is_followed_to_its_border():
    mask = tube((60, 90), straight((30, -20), 0, 150), 4.5)
    edge = only_edge(graph.vessel_tree(mask))
    assert edge["mean_radius"] == pytest.approx(4.5, rel=0.02)
    assert 90 - 2 * 4.5 <= edge["length"] <= 90


# ---- Any mask at all -----------------------------------------------------------------------------


def random_mask(seed):
    """Noise, blobs or thick strokes of any density, on a small picture of any shape."""
    generator = np.random.default_rng(seed)
    shape = generator.integers(1, 64, 2)
    noise = ndimage.gaussian_filter(generator.normal(size=shape), (0, 0.7, 2, 4)[seed % 4])
    return noise > np.quantile(noise, generator.random())


@pytest.mark.parametrize("seed", range(24))
def test_any_mask_has_a_tree_with_its_components_and_holes(seed):
    mask = random_mask(seed)
    tree = graph.vessel_tree(mask, (0.3, 0.2) if seed % 3 else None)
    assert json.loads(json.dumps(tree, allow_nan=False)) == tree
    assert all(
        value >= 0 for edge in tree["edges"] for value in edge.values() if type(value) is float
    )
    degrees = np.bincount(
        [n for e in tree["edges"] for n in e["nodes"]], minlength=len(tree["nodes"])
    )
    for node, degree in zip(tree["nodes"], degrees, strict=True):
        assert node["kind"] == {0: "end", 1: "end", 2: "loop"}.get(degree, "junction")
        assert -1 < node["row"] < mask.shape[0]
        assert -1 < node["column"] < mask.shape[1]
    # Euler's formula, with the seams filled.
    holes, _ = ndimage.label(~np.pad(mask, 2))
    filled = np.pad(mask, 2) | (np.bincount(holes.ravel()) <= 16)[holes]
    components, gaps = ndimage.label(filled, np.ones((3, 3)))[1], ndimage.label(~filled)[1] - 1
    assert len(tree["nodes"]) - len(tree["edges"]) == components - gaps


# ---- Refusals and pictures -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (np.zeros((4, 5), np.uint8), r"boolean .* not uint8 \(4, 5\)"),
        (np.zeros((4, 5, 1), bool), r"boolean .* not bool \(4, 5, 1\)"),
    ],
)
def test_what_is_no_mask_is_quoted(mask, said):
    with pytest.raises(ValueError, match=said):
        graph.vessel_tree(mask)


@pytest.mark.parametrize(
    "spacing", [(0, 1), (1, -0.5), (1, math.inf), (math.nan, 1), (1,), (1, 1, 1), 0.3]
)
def test_a_spacing_that_cannot_be_is_quoted(spacing):
    with pytest.raises(ValueError, match="two positive numbers of mm, not") as error:
        graph.vessel_tree(np.ones((4, 5), bool), spacing)
    assert str(spacing) in str(error.value)


def test_a_tree_is_drawn_on_a_copy_of_its_picture():
    tree = graph.vessel_tree(tube((40, 80), straight((20, 15), 0, 50), 4.5))
    picture = np.full((40, 80, 3), 90, np.uint8)
    drawn = graph.draw_tree(picture, tree)
    assert (picture == 90).all()
    assert drawn.dtype == np.uint8
    red, _, blue = drawn[20, 20:60].T.astype(int)
    assert (blue - red > 100).all()
    assert drawn[20, 15].tolist() == drawn[20, 65].tolist() == [240, 228, 66]
    changed = (drawn != 90).any(axis=2)
    assert not changed[:15].any()
    assert not changed[26:].any()


def test_a_junction_is_drawn_in_another_colour_than_an_end():
    mask = union((80, 80), [(straight((40, 40), turn, 30), 3.5) for turn in (0, 90, 180)])
    tree = graph.vessel_tree(mask)
    drawn = graph.draw_tree(np.zeros((80, 80, 3), np.uint8), tree)
    assert drawn[40, 40].tolist() == [213, 94, 0]


def test_an_empty_tree_leaves_the_picture_as_it_is():
    picture = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    drawn = graph.draw_tree(picture, graph.vessel_tree(np.zeros((4, 5), bool)))
    np.testing.assert_array_equal(drawn, picture)


@pytest.mark.parametrize("picture", [np.zeros((4, 5), np.uint8), np.zeros((4, 5, 3), np.float32)])
def test_what_is_no_rgb_picture_is_quoted(picture):
    tree = graph.vessel_tree(np.zeros((4, 5), bool))
    with pytest.raises(ValueError, match=r"uint8 \(height, width, 3\), not") as error:
        graph.draw_tree(picture, tree)
    assert f"{picture.dtype} {picture.shape}" in str(error.value)
