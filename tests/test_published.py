"""The published ablations: facts, counts in clips, and the page that is made of them."""

import pytest
import yaml

from aape.study.published import published_neurons
from benchmarks import published


def facts() -> dict:
    return yaml.safe_load((published.HERE / "published.yaml").read_text())


def test_every_published_accuracy_is_a_whole_number_of_clips():
    cremad, gtzan = (
        published.clips_right(ablation["target_results"]) for ablation in facts()["ablations"]
    )
    assert cremad["ANG"] == (223, 219, 265) and cremad["HAP"] == (200, 199, 265)
    assert (
        sum(clips for *_, clips in cremad.values()) == 1551
        and sum(clips for *_, clips in gtzan.values()) == 290
    )
    changed = {
        name: after - before for name, (before, after, _) in gtzan.items() if after != before
    }
    assert changed == {"country": 1, "pop": 1}
    with pytest.raises(ValueError, match="not a whole number"):
        published.clips_right({"ANG": (0.8284, 0.0, 265)})


def test_each_control_is_the_target_shifted_by_one():
    for ablation in facts()["ablations"]:
        targets = published_neurons(ablation["task"], *ablation["targets"])
        control = yaml.safe_load(ablation["control"])
        assert (
            published.shifted_by_one(targets, control) == len(targets) == len(control) in (22, 26)
        )


def test_four_clips_in_one_direction_cannot_be_significant():
    assert published.least_p(-4) == pytest.approx(2 * 0.5**4)
    assert published.least_p(0) == 1.0


def test_the_committed_page_is_made_of_the_facts():
    assert published.PAGE.read_text() == published.page()
