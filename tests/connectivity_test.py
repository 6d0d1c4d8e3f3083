import itertools
import json

import golden_baselines
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tprnet_jax.models import connectivity, losses

UNITS = json.loads((golden_baselines.FOLDER / "golden_units.json").read_text())


def _logits(name, channels):
    return 2 * golden_baselines.values(name, (2, channels, 16, 16)).transpose(0, 2, 3, 1)


@pytest.fixture(scope="module")
def mask():
    return (golden_baselines.values("mask", (2, 1, 16, 16)) > 0.5).transpose(0, 2, 3, 1) * 1.0


@pytest.mark.parametrize("distance", [2, 4])
def test_golden_labels(distance):
    facts = UNITS["connectivity"]
    mask = np.array(facts["mask"])
    found = connectivity.labels(mask[None, :, :, None], distance)[0]
    expected = np.zeros((8, 8, 9), int)
    for i, j, r, c in itertools.product(range(8), range(8), range(3), range(3)):
        row, column = i + (r - 1) * distance, j + (c - 1) * distance
        if 0 <= row < 8 and 0 <= column < 8:
            expected[i, j, 3 * r + c] = mask[i, j] and mask[row, column]
    assert expected.sum((0, 1)).tolist() == facts[f"sum_d{distance}"]
    np.testing.assert_array_equal(found, expected[..., facts["official_channel_order"]])


def test_golden_losses(mask):
    """The main loss differs from CoANet's in smoothing, and by 1."""
    facts = UNITS["losses"]
    logits = _logits("logits1", 1)
    logits = jnp.concatenate([jnp.zeros_like(logits), logits], axis=-1)
    main = 1 + losses.cross_entropy(logits, mask) + losses.soft_dice(logits, mask)
    assert float(main) == pytest.approx(facts["coanet_dice_bce"], rel=1e-6)
    labels = golden_baselines.values("conlabel", (2, 9, 16, 16)).transpose(0, 2, 3, 1) > 0.5
    found = connectivity.cross_entropy(_logits("con", 9), labels)
    assert float(found) == pytest.approx(facts["coanet_con_bce"], rel=1e-6)
    total = facts["coanet_dice_bce"] + connectivity.SHARE * facts["coanet_con_bce"]
    assert total == pytest.approx(facts["coanet_total_example"])


def test_near_neighbours_weigh_more(mask):
    near, far = _logits("near", 9), _logits("far", 9)

    def entropy(logits, distance):
        p, labels = jax.nn.sigmoid(logits), connectivity.labels(mask, distance)
        return -np.log(np.where(labels, p, 1 - p)).mean()

    found = connectivity.loss({"connect_d2": near, "connect_d4": far}, mask)
    expected = 0.2 * (0.6 * entropy(near, 2) + 0.4 * entropy(far, 4))
    assert float(found) == pytest.approx(expected, rel=1e-5)
