"""Analyze_ClassSpecificNeurons.ipynb: from artifacts to tables and figures, with what chance would give."""

from __future__ import annotations

from notebooks_src.collecting import Cell


def cells() -> list[Cell]:
    """The cells; the first code cell holds the parameters."""
    return [
        (
            "markdown",
            "# Class-specific neurons, what they share, and what chance gives\n\n"
            "Which neurons of a frozen audio Transformer are specific to which sound class, and which classes and "
            "datasets share neurons? This notebook makes the tables and figures of Kawamura, Niizumi and Ono (2026, "
            "arXiv 2602.15307) from the artifacts of the collecting notebooks alone: no model and no audio is needed. "
            "Beside every number stands what permuted labels give.\n\n"
            "**Method.** p is the share of a class's tokens in which a neuron is active (> 0). AAPE is the entropy of "
            "p over the classes. Neurons with a weak response are filtered out, those of lowest AAPE are kept, and a "
            "kept neuron is *class-specific* for the classes whose p exceeds the 95th percentile of all p.\n\n"
            "Cost: a few minutes for `miniature` on two CPU cores, no more than seconds when it is run again with "
            "nothing changed.",
        ),
        ("code", 'study = "miniature"  # "miniature", "esc50", "paper", or the path of a study file'),
        (
            "code",
            "import pandas as pd\n"
            "from IPython.display import Image, Markdown, display\n\n"
            "from common import check_parameters\n"
            "from common_analyze import analyze, load_artifacts, load_study\n\n"
            'check_parameters(globals(), "study")\n'
            'pd.set_option("display.max_columns", 60)\n'
            'pd.set_option("display.max_rows", 200)\n'
            'pd.set_option("display.precision", 3)\n'
            "settings = load_study(study)\n"
            'display(Markdown(f"**{settings.description}.** {settings.note}"))\n'
            "analysis = analyze(settings)\n"
            "if analysis.missing:\n"
            '    print("without artifacts:", ", ".join(f"{task} ({model})" for task, model in analysis.missing))\n'
            "for note in analysis.notes:\n"
            "    print(note)\n\n\n"
            "def show(*names):\n"
            '    """Figures by name, where the study has them."""\n'
            "    for name in names:\n"
            "        if name in analysis.figures:\n"
            "            display(Image(str(analysis.figures[name])))\n"
            "        else:\n"
            '            print(f"{name}: not part of this study, or no artifacts")',
        ),
        (
            "markdown",
            "## 1. Task-level statistics: SSL, SL and untrained\n\n"
            "A row per task. *Coverage* is the share of classes with at least one class-specific neuron. The untrained "
            "encoder of the same shape is the first control: what it reaches needs no training. *Calibrated* columns "
            "are explained in section 2.",
        ),
        ("code", "analysis"),
        (
            "markdown",
            "The complete rows (clips, tokens, thresholds, minimum and maximum per class, neurons by layer, nulls) are "
            "in `task_level_neuron_statistics_analysis.csv`, `..._vit.csv` and `..._untrained.csv`; the neurons "
            "themselves in `neurons.csv` beside each task's artifacts.",
        ),
        (
            "code",
            "columns = [\n"
            '    "task", "model", "clips", "groups", "neurons_selected", "per_class_median", "threshold", "permutation",\n'
            "]\n"
            "analysis.overview.reindex(columns=columns)",
        ),
        (
            "markdown",
            "## 2. What chance gives\n\n"
            "A percentile selects something from any table. So the labels are permuted and everything is selected "
            "again. Clips of one recording or speaker are not independent: where all clips of a group are of one class "
            "the labels are permuted among groups, where a group has several classes they are permuted within it "
            "(column `permutation` above says which).\n\n"
            "**How to read it.** Permuted labels reach a coverage of about 100 % and often *more* neurons per class "
            "than the real ones, because a neuron that prefers no class passes the threshold for many classes at once. "
            "So coverage and counts do not tell structure from noise. The AAPE of the selected neurons and their "
            "number of classes do: a dot to the left of its bar is structure.",
        ),
        ("code", 'show("chance")'),
        (
            "markdown",
            "**Columns.** *permuted*: mean and 95 % interval over the permutations. *p (AAPE)*: share of the permutations "
            "whose selected neurons have as low a mean AAPE. *neurons with q < 0.05*: share of **all** neurons whose "
            "AAPE is lower than chance gives (false-discovery rate); where it is large, being different is no "
            "distinction. *calibrated*: class-specific pairs (neuron, class) that also pass q < 0.05, a stated least "
            "difference between p inside and outside the class (`chance.effect` of the study), and a gate on the whole "
            "task (at most 5 % of its permutations make as many discoveries). *stability*: Jaccard index of a class's "
            "neurons from two halves of the groups; noise can be stable too where a neuron is active for all classes, "
            "hence the column for shuffled labels.",
        ),
        (
            "markdown",
            "Class by class, the five with most and the five with least calibrated neurons for each task (SSL):",
        ),
        (
            "code",
            "first = next(iter(settings.encoders))\n"
            "mine = analysis.classes[analysis.classes.model == first]\n"
            'if "calibrated" in mine:\n'
            '    ranked = mine.sort_values(["task", "calibrated"], ascending=[True, False], kind="stable")\n'
            '    ends = [pd.concat([t.head(5), t.iloc[5:].tail(5)]) for _, t in ranked.groupby("task", sort=False)]\n'
            "    display(pd.concat(ends).reset_index(drop=True))",
        ),
        ("markdown", "## 3. Where the neurons sit\n\nClass-specific neurons by layer, those that survive chance, and those that several classes share."),
        ("code", 'show("neurons_by_layer")'),
        (
            "markdown",
            "## 4. Shared neurons\n\n"
            "The Jaccard index of two classes' neuron sets. Against all neurons of the encoder almost any overlap would "
            "look like sharing. The null here re-deals the class memberships among the neurons that were *selected*, "
            "keeping for each neuron its layer and its number of classes, and for each class its number of neurons per "
            "layer. A dot marks what survives it (q < 0.05 over all pairs of the panel). Within one task the re-dealing "
            "fixes the total overlap, so only its distribution over the pairs can stand out.",
        ),
        ("code", "analysis.sharing_summary"),
        (
            "markdown",
            "### Across datasets\n\n"
            "**Pitch.** Dotted lines: whole octaves. Below: mean sharing of pitches that are so many semitones apart, "
            "with the band of the re-dealt memberships; peaks at 12, 24, ... would be octave neurons.",
        ),
        (
            "code",
            'show("cross_task-surge-nspitch")\n'
            "if len(analysis.octaves):\n"
            "    octaves = analysis.octaves\n"
            "    display(octaves[(octaves.semitones % 12 == 0) & (octaves.pairs >= 5)].reset_index(drop=True))",
        ),
        ("markdown", "**Acoustic events**, with the strongest pairs by name; **gender**, from two datasets."),
        ("code", 'show("cross_task-esc50-gise51", "cross_task-vc1-cremad_gender")'),
        ("markdown", "### Within a dataset\n\nGenres, emotions and languages, ordered by clustering."),
        ("code", 'show("within_task-gtzan", "within_task-cremad", "within_task-voxforge")'),
        (
            "code",
            "pairs = analysis.strongest_pairs\n"
            "if len(pairs):\n"
            '    top = pairs[(pairs.model == first) & (pairs.shared_neurons >= 2)].groupby("figure", sort=False).head(5)\n'
            "    display(top.reset_index(drop=True))",
        ),
        (
            "markdown",
            "## 5. Sensitivity\n\n"
            "How the numbers move with each choice of the method; means over the study's tasks, task by task in "
            "`sensitivity.csv`. *overlap with stated*: Jaccard index of the (neuron, class) pairs with those of the "
            "stated settings. *clips per class: equal* resamples the clips so that every class has as many as the "
            "smallest. *zero padding: left out* drops the tokens of zeros that were added behind short clips; digital "
            "silence that a recording itself contains (some of ESC-50's do) is part of the recording and stays.",
        ),
        ("code", "analysis.sensitivity"),
        (
            "markdown",
            "## 6. The published figures\n\n"
            "The paper's values beside this study's. Stand-ins are not comparable with them, and the table says so.",
        ),
        ("code", "display(analysis.published)\nanalysis.published_lists"),
        (
            "markdown",
            "## 7. Any question later\n\n"
            "The counts per clip regroup classes or splits without the model, for example:",
        ),
        (
            "code",
            "task, model = next(iter(analysis.results))\n"
            "artifacts = load_artifacts(settings.artifacts_directory(task, model))\n"
            "if artifacts.has_counts and len(artifacts.classes) > 1:\n"
            "    half = len(artifacts.classes) // 2\n"
            '    regrouped = {"first half": artifacts.classes[:half], "second half": artifacts.classes[half:]}\n'
            "    p = artifacts.probabilities(classes=regrouped)\n"
            '    print(task, model, "two groups of classes:", p.shape, "layers, neurons, classes")',
        ),
        (
            "code",
            'print("written to", settings.directory)\n'
            'sorted(p.name for pattern in ("*.csv", "*.pdf") for p in settings.directory.glob(pattern))',
        ),
    ]  # fmt: skip
