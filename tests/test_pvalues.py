"""p-values, q-values and the share of groups, by hand and against known variances."""

import numpy as np
import pytest

from aape.neurons.pvalues import benjamini_hochberg, one_sided_p, pooled_p, share_of_groups


def test_p_and_q_by_hand():
    q = benjamini_hochberg(np.array([0.01, np.nan, 0.04, 0.03]))
    assert q == pytest.approx([0.03, np.nan, 0.04, 0.04], nan_ok=True)
    assert one_sided_p(-2.0, np.array([-1.0, 0.0, 1.0])) == 1 / 4
    assert (
        one_sided_p(-1.0, np.array([-1.0, 0.0, np.nan, 1.0])) == 2 / 4
    )  # a tie counts against the observed
    assert np.isnan(one_sided_p(-1.0, np.array([]))) and np.isnan(one_sided_p(np.nan, np.zeros(3)))
    null = np.tile([[0.0, 5.0, 1.0], [1.0, 5.0, 2.0]], (50, 1))
    p = pooled_p(np.array([1.0, 5.0, 1.0]), null, np.array([0, 0, -1]))
    assert p == pytest.approx(
        [51 / 101, 1.0, np.nan], nan_ok=True
    )  # ties count, constants say nothing


def test_the_groups_share_is_the_intraclass_correlation():
    """Speakers of unequal size; the variance between them is known."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(300), rng.integers(2, 9, 300))
    labels = groups % 4  # every speaker is of one class
    speaker = rng.normal(0, 1, (300, 2))[groups] * [1.0, 0.0]
    values = labels[:, None] + speaker + rng.normal(0, 1, (len(groups), 2))
    assert share_of_groups(values, labels, groups) == pytest.approx([0.5, 0.0], abs=0.06)
    crossed = np.arange(len(labels)) % 4  # speakers of every class
    assert share_of_groups(values - labels[:, None], crossed, groups)[0] == pytest.approx(
        0.5, abs=0.1
    )
    assert np.isnan(share_of_groups(values, labels, np.arange(len(labels)))).all()
