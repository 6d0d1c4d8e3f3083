import cv2
import numpy as np

from tprnet_jax.report import palette, tradeoff
from tprnet_jax.report.tradeoff import Point

BLUE = palette.SERIES[0][::-1]


def _marks(points):
    """Place (row, column) and area of each mark, from the left."""
    picture = cv2.imdecode(np.frombuffer(tradeoff.draw(points), np.uint8), cv2.IMREAD_COLOR)
    blue = (np.abs(picture.astype(int) - BLUE) < 60).all(axis=2).astype(np.uint8)
    count, _, stats, centres = cv2.connectedComponentsWithStats(blue)
    marks = [(*centres[k][::-1], stats[k, cv2.CC_STAT_AREA]) for k in range(1, count)]
    return sorted((mark for mark in marks if mark[2] > 5), key=lambda mark: mark[1])


def test_marks_are_where_their_values_are():
    """Dice upwards on a straight scale, images a second to the right on a logarithmic one."""
    slow, middle, fast = _marks([Point("b", 2, 0.75), Point("c", 4, 0.7), Point("a", 1, 0.8)])
    assert slow[0] < middle[0] < fast[0]
    np.testing.assert_allclose(middle[:2], np.add(slow[:2], fast[:2]) / 2, atol=1)


def test_the_deviation_is_a_bar():
    bars = [_marks([Point("a", 1, 0.8, d), Point("b", 2, 0.6)])[0][2] for d in (0.0, 0.05)]
    assert bars[1] > 2 * bars[0]


def test_what_is_quoted_is_hollow():
    areas = [_marks([Point("a", 1, 0.8, quoted=q), Point("b", 2, 0.6)])[0][2] for q in (0, 1)]
    assert areas[1] < 0.7 * areas[0]
