import csv

import numpy as np
import pytest
from scipy import stats

from tprnet_jax.report import comparison
from tprnet_jax.report.comparison import Method


def _seed(dice, asd, **more):
    return {"dice": np.array(dice), "asd": np.array(asd)} | more


@pytest.fixture(scope="module")
def report():
    """Three images; the second method has two seeds, whose means are 0.75 and 0.85."""
    first = Method("a_b", [_seed([0.6, 0.7, 0.8], [3.0, 3.0, 6.0])], 2_000_000, 7.25, 4.0)
    seeds = [_seed([0.7, 0.75, 0.8], [1.0, 2.0, 3.0]), _seed([0.8, 0.85, 0.9], [2.0, 2.0, 2.0])]
    return comparison.report([first, Method("second", seeds, 500_000, 1.0, 8.0)])


def test_means_and_deviations_over_seeds(report):
    first, second = report["methods"]
    assert (report["images"], report["metrics"]) == (3, ["dice", "asd"])
    assert first["mean"] == pytest.approx({"dice": 0.7, "asd": 4.0})
    assert "sd" not in first
    assert second["mean"] == pytest.approx({"dice": 0.8, "asd": 2.0})
    assert second["sd"] == pytest.approx({"dice": 0.1 / 2**0.5, "asd": 0.0})


def test_the_difference_is_paired_by_image(report):
    first, second = report["methods"]
    assert "against_first" not in first
    # Means over seeds are 0.75, 0.8 and 0.85, and so 0.15, 0.1 and 0.05 better.
    paired = second["against_first"]
    assert paired["difference"] == pytest.approx(0.1)
    # One resample in 27 draws the same image three times, more often than 1 in 40.
    assert paired["interval"] == pytest.approx([0.05, 0.15])
    assert paired["p"] == pytest.approx(0.25)  # All three of one sign: 2 of 2^3 cases.


def test_methods_that_do_not_differ():
    paired = comparison.against(np.zeros(4))
    assert paired == {"difference": 0.0, "interval": [0.0, 0.0], "p": 1.0}


def test_p_is_that_of_the_signed_rank_test():
    differences = np.random.default_rng(0).normal(0.02, 0.1, 200)
    assert comparison.against(differences)["p"] == stats.wilcoxon(differences).pvalue


def test_metrics_that_one_method_lacks_are_left_out():
    more = _seed([1.0], [1.0], hd95=np.array([2.0]))
    both = comparison.report(
        [Method("a", [more], 1, 1, 1), Method("b", [_seed([1.0], [1.0])], 1, 1, 1)]
    )
    assert both["metrics"] == ["dice", "asd"]


def test_undefined_values_are_not_averaged():
    seed = _seed([0.5, 0.7], [1.0, 1.0], cldice=np.array([np.nan, 0.4]))
    assert comparison.report([Method("a", [seed], 1, 1, 1)])["methods"][0]["mean"]["cldice"] == 0.4


def test_markdown(report):
    header, _, first, second, _, caption = comparison.markdown(report).splitlines()
    assert header.startswith(
        "|  | Dice | ASD | Parameters, M | GFLOP | Images/s | Dice, difference"
    )
    assert first == "| a_b | 0.7000 | 4.00 | 2.00 | 7.2 | 4.00 |  |  |"
    assert second.startswith(
        "| second | **0.8000 ± 0.0707** | **2.00 ± 0.00** | 0.50 | 1.0 | 8.00 |"
    )
    assert caption.startswith("Means over 3 images")


def test_latex_is_escaped(report):
    table = comparison.latex(report)
    assert r"a\_b & 0.7000 & 4.00 & 2.00 & 7.2 & 4.00 &  &  \\" in table
    assert r"\textbf{0.8000 $\pm$ 0.0707}" in table
    assert r"(95 \% interval)" in table
    assert table.count("\\\\") == 3  # The header and two rows.


def test_csv(report):
    first, second = csv.DictReader(comparison.as_csv(report).splitlines())
    assert (first["name"], first["runs"], first["dice_sd"], first["p"]) == ("a_b", "1", "nan", "")
    assert float(second["difference"]) == pytest.approx(0.1)
