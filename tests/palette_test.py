import itertools

import numpy as np
import pytest
from skimage.color import deltaE_ciede2000, rgb2lab

from tprnet_jax.report import palette

# Complete dichromacy as linear RGB sees it (Machado, Oliveira and Fernandes 2009, table 1).
SIGHT = {
    "normal": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
DARK, BRIGHT = (30, 30, 30), (120, 120, 120)  # A darkened angiogram around its vessels.


def _seen(colour, sight):
    value = np.array(colour) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.array(SIGHT[sight]) @ linear, 0, 1)
    value = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return rgb2lab(value)


@pytest.mark.parametrize("sight", SIGHT)
def test_errors_are_told_apart_by_every_sight(sight):
    """By at least 20 units of CIEDE2000, of which 2 or 3 are seen side by side."""
    errors = (palette.TRUE_POSITIVE, palette.FALSE_POSITIVE, palette.FALSE_NEGATIVE)
    for one, other in itertools.combinations((*errors, DARK, BRIGHT), 2):
        assert deltaE_ciede2000(_seen(one, sight), _seen(other, sight)) > 20, (one, other)


def test_colours_for_a_page():
    rule = palette.css()
    assert rule.startswith(":root{--true-positive:#ffffff;--false-positive:#d55e00;")
    assert rule.endswith("}")
    assert rule.count(";--series-") == len(palette.SERIES) == len(set(palette.SERIES))
