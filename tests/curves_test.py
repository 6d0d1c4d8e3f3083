import cv2
import numpy as np
import pytest

from tprnet_jax.report import curves, palette
from tprnet_jax.runtime.errors import UserError

TRAIN = [
    {
        "step": step,
        "split": "train",
        "loss": 1 / (1 + step),
        "loss_global": 0.5,
        "learning_rate": 0.1,
    }
    for step in range(3)
]
SKIPPED = {"step": 3, "split": "train", "skipped": ["a.png"]}
HELD_OUT = {"step": 3, "split": "holdout", "global_dice": 0.7, "final_dice": 0.8, "final_asd": 5.0}


def _picture(records):
    return cv2.imdecode(np.frombuffer(curves.draw(records), np.uint8), cv2.IMREAD_COLOR)


@pytest.mark.parametrize("records", [[], TRAIN, [*TRAIN, SKIPPED], [*TRAIN, HELD_OUT]])
def test_the_picture_has_three_plots(records):
    picture = _picture(records)
    assert picture.shape == (900, 900, 3)
    # The frames of three plots: dark lines across most of the width.
    dark = (picture.max(axis=2) < 60).mean(axis=1) > 0.6
    assert np.diff(dark.astype(int)).clip(0).sum() >= 6


def test_a_curve_is_where_its_values_are():
    """The Dice of the final output, in its own colour, left of and above a worse one."""
    better = {**HELD_OUT, "step": 1, "final_dice": 0.9, "global_dice": 0.6}
    picture = _picture([*TRAIN, better, HELD_OUT])[600:]
    colour = [int(curves.COLOURS[1][i : i + 2], 16) for i in (5, 3, 1)]
    rows, columns = np.nonzero((np.abs(picture.astype(int) - colour) < 20).all(axis=2))
    inside = rows > 60  # Below the legend.
    first, last = columns[inside].argmin(), columns[inside].argmax()
    assert rows[inside][first] < rows[inside][last]


def test_a_damaged_log_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n\0\0\n{"step": 3}\n{"ste')
    with pytest.raises(UserError, match=r"metrics\.jsonl is damaged .*; remove the lines that are"):
        curves.read(tmp_path / "metrics.jsonl")


def test_every_loss_term_has_a_colour():
    """Those of a whole cascade whose GlobalNet has auxiliary outputs."""
    terms = ("", "_auxiliary", "_global", "_local", "_global_local", "_final", "_focal")
    record = {"step": 1, "split": "train", "learning_rate": 1.0}
    losses = {f"loss{term}": place / 7 for place, term in enumerate(terms)}
    picture = _picture([record | losses])[:300]
    for colour in palette.SERIES:
        assert (np.abs(picture.astype(int) - colour[::-1]) < 20).all(axis=2).any()
