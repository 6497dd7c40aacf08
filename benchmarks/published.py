"""What the published ablations can and cannot show, computed from published facts: writes gallery/paper/README.md.

    python -m benchmarks.published

The facts and their sources stand in published.yaml. Neither weights nor sounds are needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from scipy.stats import binomtest

from aape.files import write_text
from aape.study.published import published_neurons

HERE = Path(__file__).parent
PAGE = HERE.parent / "gallery" / "paper" / "README.md"

Results = dict[
    str, tuple[float, float, int]
]  # class -> accuracy after silencing, difference, test clips


def clips_right(results: Results) -> dict[str, tuple[int, int, int]]:
    """Correctly classified clips before and after, and all clips, by class.

    Raises:
        ValueError: an accuracy that is not a whole number of clips, to its four decimals.
    """
    counts = {}
    for name, (after, difference, clips) in results.items():
        right_after = round(after * clips)
        right_before = round((after - difference) * clips)
        for value, right in ((after, right_after), (after - difference, right_before)):
            if abs(value - right / clips) > 1.01e-4:
                raise ValueError(f"{name}: {value} of {clips} clips is not a whole number of clips")
        counts[name] = (right_before, right_after, clips)
    return counts


def least_p(net_change: int) -> float:
    """The smallest two-sided p that an exact paired test (McNemar) can give for a net change of this many clips.

    It is reached if exactly so many clips change and all in one direction.
    """
    changed = abs(net_change)
    return float(binomtest(changed, changed).pvalue) if changed else 1.0


def shifted_by_one(targets: set[tuple[int, int]], control: list[list[int]]) -> int:
    """How many neurons of a control are a target neuron with its index increased by one."""
    shifted = {(layer, neuron + 1) for layer, neuron in targets}
    return sum((layer, neuron) in shifted for layer, neuron in control)


def ablation_section(facts: dict[str, Any]) -> str:
    """The Markdown of one ablation: its lists, a table in clips, and what a test could give."""
    targets = published_neurons(facts["task"], *facts["targets"])
    control = yaml.safe_load(facts["control"])
    shifted = shifted_by_one(targets, control)
    shared = len(targets & {tuple(neuron) for neuron in control})
    counts = clips_right(facts["target_results"])
    control_counts = clips_right(facts["control_results"])
    rows = []
    for name, (before, after, clips) in counts.items():
        control_before, control_after, _ = control_counts[name]
        bold = "**" if name in facts["targets"] else ""
        change, control_change = after - before, control_after - control_before
        cells = [
            f"{bold}{name}{bold}", str(clips), str(before), f"{after} ({change:+d})",
            f"{control_after} ({control_change:+d})", f"{least_p(change):.3g}",
        ]  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(
        [
            f"## {facts['title']}: {len(targets)} neurons shared by {' and '.join(facts['targets'])}",
            "",
            f"The control list holds {len(control)} neurons. {shifted} of them are a target neuron with its index increased "
            f"by one, in the same layer; {shared} are target neurons themselves. The control is therefore one fixed set. It "
            "has as many neurons per layer as the target, but it is not matched for activity.",
            "",
            "| class | test clips | right before | after, target | after, control | smallest possible p |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def selection_section(sizes: dict[str, Any]) -> str:
    """What the reported numbers of neurons per class say about the selection."""
    rows = []
    for task, title in (("cremad", "CREMA-D"), ("esc50", "ESC-50")):
        facts = sizes[task]
        kept = round(facts["rate"] * sizes["neurons"])
        per_neuron = facts["neurons_per_class"] * facts["classes"] / kept
        bound = 0.05 * kept
        cells = [
            title, f"{kept}", f"{facts['classes']}", f"{facts['neurons_per_class']}", f"{per_neuron:.2f}", f"{bound:.1f}",
        ]  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(
        [
            "## What the numbers of neurons per class say about the selection",
            "",
            "The paper keeps a share of the 36,864 neurons and calls a kept neuron specific to every class whose activation "
            "probability exceeds a 95th percentile. If the percentile were taken over the kept neurons only, at most 5 % of "
            "all pairs of a kept neuron and a class could exceed it. There would be at most the number in the last column "
            "per class on average.",
            "",
            "| task | neurons kept | classes | neurons per class (paper) | classes per neuron | at most, percentile of the kept |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            "Both reported numbers exceed that bound, for CREMA-D ninefold. They fit a percentile over *all* neurons, as in "
            "the code of LAPE (Tang et al., ACL 2024). This repository therefore uses LAPE's filter and threshold "
            "(`weak_filter: lape`); Analyze_ClassSpecificNeurons.ipynb shows what the filter selects as the paper's prose "
            "describes it.",
            "",
        ]
    )


def page() -> str:
    """The whole page."""
    facts = yaml.safe_load((HERE / "published.yaml").read_text(encoding="utf-8"))
    sections = [ablation_section(ablation) for ablation in facts["ablations"]]
    introduction = """# The published ablations, read closely

The paper (Kawamura, Niizumi and Ono 2026, [arXiv 2602.15307](https://arxiv.org/abs/2602.15307)) silences two sets of
neurons of M2D and reports how a frozen classifier changes. Its code is at
[onolab-tmu/AAPE](https://github.com/onolab-tmu/AAPE). The lists of neurons, the control lists and the accuracy per class
after silencing stand in four configuration files of [EVAR](https://github.com/nttcslab/eval-audio-repr) (commit `88ba772`,
`config/m2d_abl_neuron1.yaml`, `m2d_abl_neuron1-rand.yaml` and the same for `neuron2`). This page recomputes what follows
from these public facts: `python -m benchmarks.published` writes it from
[benchmarks/published.yaml](../../benchmarks/published.yaml). It uses no weights and runs no model.

**In short.** On CREMA-D, silencing the 22 neurons changes anger by a net 4 of 265 clips and happiness by 1 of 265. The
configurations list accuracies and not single clips. The smallest two-sided p that an exact paired test could give is
therefore 0.125 for anger, if exactly four clips changed and all in one direction. On GTZAN the two target classes do not
change at all, while two other classes gain one clip each. The published numbers are compatible with the claim that the
neurons matter for their classes, and equally with no effect. More controls and a finer measure can decide it: this repository compares
with 199 activity-matched sets and measures log-probabilities (`python -m notebooks_src.run paper`, which needs M2D's
weights and the datasets). With the weights, the lists above and the control with every index increased by one are
compared too.

"""
    columns = """*Right*: test clips that the classifier assigns to their class, from the accuracies in the configurations (seed 6). *Smallest
possible p*: of an exact two-sided paired test (McNemar) for the target's net change, if exactly so many clips changed and
all in one direction. Target classes are bold.

"""
    return introduction + columns + "\n".join(sections) + "\n" + selection_section(facts["sizes"])


def main() -> None:
    """Write the page."""
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    write_text(PAGE, page())
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
