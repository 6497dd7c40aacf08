# %% [markdown]
# # Class-specific neurons, shared neurons, and chance levels
#
# Which neurons of a frozen audio Transformer are specific to which sound class? Which classes and datasets share neurons?
# Part 1 shows the method of Kawamura, Niizumi and Ono (2026, arXiv 2602.15307) on one task, in plain cells. The other parts
# apply it to every task and model of a study. Every result is shown next to what permuted labels give.
#
# The notebook reads only the artifacts of the collecting notebooks. It needs neither a model nor audio.
#
# **Cost:** one or two minutes for `miniature` on two CPU cores; seconds if nothing has changed since the last run.

# %% tags=["parameters"]
study = "miniature"  # a study in studies/, or the path of your own study file

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Image, Markdown, display

from common_analyze import (
    analyze,
    calibrate,
    counted_clips,
    example,
    jaccard,
    load_artifacts,
    load_study,
    select,
    table,
)

settings = load_study(study)
Markdown(settings.heading())

# %% [markdown]
# ## 1. The method, on one task
#
# A *neuron* is one channel of one block's MLP after its activation function; layers and neurons count from 0. The task
# and the model are the first of the study that are collected.

# %%
task, model = example(settings)
artifacts = load_artifacts(settings.artifacts_directory(task, model))
artifacts

# %% [markdown]
# **Activation probability.** The collecting pass kept, for every clip, the number of tokens at which each neuron was active
# (> 0). The activation probability of a neuron for a class is the number of active tokens in the clips of the class, divided
# by the number of their tokens.

# %%
clips = counted_clips(artifacts)  # .counts [clips, layers, neurons], .labels and .tokens [clips]
of_class = [clips.labels == c for c in range(len(artifacts.classes))]
active = np.stack([clips.counts[mine].sum(axis=0, dtype=np.int64) for mine in of_class], axis=2)
p = active / [clips.tokens[mine].sum() for mine in of_class]  # [layers, neurons, classes]
table(pd.DataFrame(p[0, :5, :7], columns=artifacts.classes[:7]).rename_axis("neuron of layer 0"))

# %% [markdown]
# **Selection.** AAPE (Audio Activation Probability Entropy) is the entropy of a neuron's p over the classes, after scaling
# its sum to 1. It is low if a neuron prefers few classes and ln C if it has no preference among C classes. The selection has
# three steps. Neurons with a weak response are dropped, the neurons of lowest AAPE are kept, and a kept neuron is
# *class-specific* for each class for which its p exceeds the 95th percentile of all p.

# %%
thresholds = settings.selection
selection = select(
    p,
    rate=settings.rate(task),
    quantile=thresholds.quantile,
    weak_filter=thresholds.weak_filter,
    classes=artifacts.classes,
)
aape = selection.entropy
alive = np.isfinite(aape)  # neurons that are active at least once
strong = alive & (p.max(axis=2) > selection.weak_threshold)
kept = selection.selected

bins = np.linspace(aape[alive].min(), np.log(len(artifacts.classes)) + 1e-9, 60)
parts = [aape[kept], aape[strong & ~kept], aape[alive & ~strong]]
names = ["kept", "strong response, AAPE too high", "dropped: weak response"]
picture, axes = plt.subplots(figsize=(6.4, 2.8), layout="constrained")
axes.hist(parts, bins, stacked=True, color=["#0072B2", "#8FB8D8", "0.85"], label=names)
axes.axvline(
    np.log(len(artifacts.classes)), color="0.3", ls="--", lw=1, label="ln C: no preference"
)
axes.set(xlabel="AAPE (nats)", ylabel="neurons", yscale="log")
axes.set_title(
    f"The filter leaves {strong.sum():,} of {aape.size:,} neurons, AAPE keeps {kept.sum():,} of these",
    fontsize=10,
)
legend = picture.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)

# %% [markdown]
# The kept neurons need not be those of lowest AAPE overall: the lowest values often belong to neurons that are hardly ever
# active, which the filter drops.

# %%
selection

# %% [markdown]
# **The paper's filter as written.** The filter above is that of LAPE's code: some p of the neuron must exceed the 95th
# percentile of all p. Readers of the paper report a milder filter, which drops only the 5 % of neurons with the weakest
# response. The neurons of lowest AAPE are then mostly neurons that are active at very few tokens. Their p lies far below the
# threshold, so that hardly any of them is specific to a class. The numbers that the paper reports fit LAPE's filter (see
# gallery/paper), which is why this repository uses it.

# %%
as_written = select(
    p,
    rate=settings.rate(task),
    quantile=thresholds.quantile,
    weak_filter="paper",
    classes=artifacts.classes,
)
picture, axes = plt.subplots(figsize=(6.4, 3.0), layout="constrained")
for chosen, colour, label in (
    (alive, "0.85", "all neurons"),
    (as_written.selected, "#E69F00", "kept, the paper's filter as written"),
    (kept, "#0072B2", "kept, LAPE's filter"),
):
    axes.scatter(aape[chosen], p.max(axis=2)[chosen], s=4, color=colour, label=label)
axes.axhline(
    selection.threshold,
    color="0.3",
    ls="--",
    lw=1,
    label="class threshold (95th percentile of all p)",
)
axes.set(xlabel="AAPE (nats)", ylabel="largest p over the classes")
axes.set_title(
    f"Pairs of a neuron and a class: {as_written.members.sum():,} with the filter as written, "
    f"{selection.members.sum():,} with LAPE's",
    fontsize=10,
)
legend = picture.legend(
    loc="outside lower center", ncols=2, frameon=False, fontsize=8, markerscale=2
)

# %% [markdown]
# **Chance level.** A percentile selects something from any table. Therefore the labels are permuted (clips of one recording
# or speaker stay together) and everything is selected again.
#
# How to read the next figure: permuted labels often give *more* class-specific neurons than the real labels. A neuron without
# any preference is counted for many classes at once, and with permuted labels all neurons are of this kind. So a grey bar
# below the orange range is common and does not mean that the class has no neurons. Look at the blue bars: *calibrated*
# neurons are those with q < 0.05 against permuted labels **and** an activation probability that is at least 0.1 higher inside
# the class than outside it, in a task that passes a test as a whole.

# %%
calibrated = calibrate(artifacts, selection, permutations=100)
place = np.arange(len(artifacts.classes))
picture, axes = plt.subplots(figsize=(6.4, 2.8), layout="constrained")
axes.bar(place, selection.per_class, color="0.75", label="selected")
axes.bar(place, calibrated.per_class, color="#0072B2", label="calibrated")
low, high = np.quantile(calibrated.null.per_class, [0.025, 0.975], axis=0)
axes.vlines(place, low, high, color="#D55E00", lw=2, label="permuted labels, 95 %")
axes.set_xticks(place, artifacts.classes, rotation=90, fontsize=7)
axes.set(ylabel="class-specific neurons")
legend = picture.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=8)

# %%
calibrated

# %% [markdown]
# **Sharing.** The Jaccard index of two classes' sets of neurons: how many both have, over how many either has.

# %%
shared = jaccard(selection.members, selection.members)  # [classes, classes]
picture, axes = plt.subplots(figsize=(5.2, max(3, 0.13 * len(place))), layout="constrained")
image = axes.imshow(shared, vmin=0, vmax=1)
axes.set_yticks(place, artifacts.classes, fontsize=7)
axes.set_xticks([])
bar = picture.colorbar(image, shrink=0.75, label="Jaccard index")

# %% [markdown]
# ## 2. The same for all tasks
#
# *Coverage* is the share of classes with at least one class-specific neuron. Permuted labels reach a coverage of about 100 %
# too. Coverage and counts alone therefore cannot distinguish structure from noise. The AAPE of the selected neurons can: a
# dot to the left of its bar is structure. The second control is an untrained encoder of the same shape. What it reaches needs
# no training.

# %%
analysis = analyze(settings)
for missing_task, missing_model in analysis.missing:
    print(f"without artifacts: {missing_task} ({missing_model})")
for note in analysis.notes:
    print(note)


def show(name):
    """Show a figure of the study if its artifacts exist."""
    if name in analysis.figures:
        display(Image(str(analysis.figures[name])))
    else:
        print(f"{name}: its tasks are not collected")


show("chance")

# %%
analysis

# %% [markdown]
# What permuted labels give, as means over the permutations. *ln C - AAPE* is how far the selected neurons lie below ln C, the
# AAPE of a neuron without any preference; *p (AAPE)* is the share of permutations whose selected neurons lie as far below.
#
# *Calibrated* pairs of neuron and class, in the table above, pass three gates. They are *significant*: q < 0.05, in a class
# and a task that also pass a test as a whole. They are *large*: the activation probability is at least 0.1 higher inside the
# class than outside (`chance.effect` of the study). And AAPE selected them. The gates do different work: with many clips an
# untrained encoder can have as many significant pairs as a trained one, but few large ones. The last two columns below count
# both over all pairs, selected or not.

# %%
chance_columns = {
    "task": "task",
    "model": "model",
    "coverage_null_mean": "coverage, permuted",
    "below_ln_classes": "ln C - AAPE (nats)",
    "below_ln_classes_null_mean": "ln C - AAPE, permuted",
    "p_mean_aape": "p (AAPE)",
    "pairs_significant": "significant pairs",
    "pairs_large": "significant and large",
}
table(analysis.overview, chance_columns, rows=100, csv="task_level_neuron_statistics_*.csv")

# %% [markdown]
# Class by class, for the task of part 1. *p (class)* is the test of the class as a whole; a class that is too small to be
# tested has none.

# %%
of_task = analysis.classes[(analysis.classes.task == task) & (analysis.classes.model == model)]
class_columns = {
    "class": "class",
    "clips": "clips",
    "neurons": "neurons",
    "null_mean": "permuted",
    "null_low": "2.5 %",
    "null_high": "97.5 %",
    "class_p": "p (class)",
    "calibrated": "calibrated",
}
table(
    of_task.sort_values("neurons", ascending=False),
    class_columns,
    csv="class_level_neuron_statistics.csv",
)

# %% [markdown]
# ## 3. Where the neurons sit
#
# Class-specific neurons by layer, the calibrated ones among them, and those that several classes share.

# %%
show("neurons_by_layer")

# %% [markdown]
# ## 4. Shared neurons
#
# The Jaccard index of two classes is the number of neurons that are specific to both, divided by the number that are specific
# to at least one of them. Neurons that are active for everything are selected whatever the labels say, and then all classes
# share them. So the mean index is compared with what permuted labels give after the same selection. Where an encoder has
# structure, most pairs share *less*. Single pairs are not tested, because such a test has little power.
#
# Classes of the same name in two tasks, or pitches an octave apart, are compared with all other pairs: the class names are
# permuted, after subtracting what permuted labels give for each pair (column *p (alike)*; with two classes it cannot be below
# 0.5). For pitches, the curve below the maps shows the mean index of pitches that many semitones apart. Neurons that respond to octaves
# would give peaks at 12, 24, ... semitones.

# %%
for figure in settings.sharing:
    show(figure.name)

# %%
sharing_columns = {
    "what": "what",
    "model": "model",
    "mean Jaccard": "mean Jaccard",
    "chance low": "permuted, 2.5 %",
    "chance high": "permuted, 97.5 %",
    "alike Jaccard": "alike classes",
    "other Jaccard": "other classes",
    "alike p": "p (alike)",
}
if len(analysis.sharing_summary):
    display(
        table(
            analysis.sharing_summary,
            sharing_columns,
            rows=60,
            csv="sharing_summary.csv, sharing_pairs.csv",
        )
    )
else:
    print(f"The study {settings.name!r} names no pair of tasks to compare.")

# %%
if len(analysis.strongest_pairs):
    pairs = analysis.strongest_pairs[analysis.strongest_pairs.model == model]
    most_shared = pairs[pairs.shared_neurons >= 2].groupby("figure", sort=False).head(3)
    pair_columns = [
        "figure",
        "rows",
        "columns",
        "shared_neurons",
        "jaccard",
        "chance_low",
        "chance_high",
    ]
    display(table(most_shared[pair_columns], rows=30, csv="sharing_pairs.csv"))

# %%
if len(analysis.octaves):
    whole = analysis.octaves[(analysis.octaves.semitones % 12 == 0) & (analysis.octaves.pairs >= 5)]
    octave_columns = {
        "model": "model",
        "semitones": "semitones",
        "pairs": "pairs",
        "mean_jaccard": "mean Jaccard",
        "chance_low": "permuted, 2.5 %",
        "chance_high": "permuted, 97.5 %",
        "above_neighbours": "above one semitone off",
    }
    display(table(whole, octave_columns, rows=30, csv="sharing_by_distance.csv"))

# %% [markdown]
# ## 5. Sensitivity
#
# How the number of neurons per class, and the set itself, change with each choice of the method: means over the study's tasks.
# *Overlap* is the Jaccard index of the pairs of neuron and class with those of the stated settings. *Filter: paper* is the
# filter as the paper's prose describes it. *Zero padding: left out* drops the tokens of zeros that were added after short
# clips: where many clips are short, a good part of the selected pairs depends on them.

# %%
table(analysis.sensitivity, rows=100, csv="sensitivity.csv")

# %% [markdown]
# ## 6. The published figures
#
# The paper's values next to this study's, if the study has the paper's models and datasets. What the published ablations
# can and cannot show is in gallery/paper.

# %%
if settings.reproduces_paper:
    display(table(analysis.published, rows=30), table(analysis.published_lists, rows=30))
else:
    print(
        "The paper reports: coverage of about 100 % (SSL), 49 % of 35 countries (SL); 172.0 neurons per class of CREMA-D and"
    )
    print(
        f"37.9 of ESC-50 (SSL). The study {settings.name!r} has other models, so its numbers are not compared with these."
    )

# %% [markdown]
# ## 7. Other questions, without a second pass
#
# The counts per clip can be regrouped without the model. For example: which neuron distinguishes two groups of classes best?
# Here these are the classes in which the most active neuron of part 1 is above and below its median.

# %%
strongest = selection.table().iloc[0]
rates = p[strongest.layer, strongest.neuron]
above = rates > np.median(rates)
names_of_classes = np.array(artifacts.classes)
two_groups = {"above": list(names_of_classes[above]), "below": list(names_of_classes[~above])}
regrouped = artifacts.probabilities(classes=two_groups)  # [layers, neurons, 2]
difference = regrouped[:, :, 0] - regrouped[:, :, 1]
layer, neuron = np.unravel_index(np.abs(difference).argmax(), difference.shape)
first, second = regrouped[layer, neuron]
print(f"{', '.join(two_groups['above'])} compared with the other classes:")
print(f"layer {layer}, neuron {neuron} is active at {first:.0%} and {second:.0%} of the tokens")

# %%
print("written to", settings.directory)
sorted(path.name for pattern in ("*.csv", "*.pdf") for path in settings.directory.glob(pattern))
