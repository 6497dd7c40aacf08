# %% [markdown]
# # Ablations: does a classifier need these neurons?
#
# A linear classifier is trained on clip embeddings of the intact encoder. Then neurons are silenced in the encoder, the test
# clips are embedded again, and the unchanged classifier is tested. A drop alone says little, because silencing *any* active
# neurons disturbs a model. Each drop is therefore compared with that of many random sets of neurons that are equally active
# in the class. Part 1 does this for one class in plain cells. Part 2 does it for every target that the study stated
# beforehand.
#
# The notebook needs the artifacts of the collecting notebooks and the audio of the test clips.
#
# **Cost:** for every test clip and every set of neurons, one pass over the layers that follow. This takes a few minutes for
# `miniature` on two CPU cores. Results are kept in `outputs/<study>/ablations/`. An interrupted run resumes, and a second run
# takes seconds.

# %% tags=["parameters"]
study = "miniature"  # a study in studies/, or the path of your own study file
device = None  # None: CUDA if there, else CPU; or "cpu", "cuda:1", "mps"
batch_size = None  # None: the study's

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown

from aape.causal.classifier import fit, folds
from aape.causal.controls import activity_matched
from aape.criteria.comparing import compare_criteria, draw_classes
from aape.figures import ablation as figures
from aape.figures.criteria import criteria
from common import load_encoder, load_study, load_task
from common_analyze import ablate, load_artifacts, select, silenced, table

settings = load_study(study)
Markdown(settings.heading())

# %% [markdown]
# ## 1. One class, by hand
#
# The task is that of the study's first target (or the first task), the model is the first one, and the class is the one with
# most neurons. The neurons are chosen on training clips. The classifier is trained on the same clips. Both are tested on
# other clips.

# %%
task = (
    settings.ablation.targets[0].task if settings.ablation.targets else next(iter(settings.tasks))
)
model = next(iter(settings.encoders))
artifacts = load_artifacts(settings.artifacts_directory(task, model))
encoder = load_encoder(settings, model).to(device or "cpu")
sounds = load_task(settings, task)

fold = folds(artifacts.splits, artifacts.labels, artifacts.classes)[0]
classifier = fit(artifacts.embeddings(), artifacts.labels, artifacts.classes, fold)
trained = artifacts.probabilities(clips=fold.fit)  # [layers, neurons, classes]
how = settings.select_by(task)
selection = select(trained, classes=artifacts.classes, **how)
target = int(np.argmax(selection.per_class))
neurons = selection.neurons(target)  # [k, 2] of (layer, neuron)
clips = fold.test[artifacts.labels[fold.test] == target][:50]
waves = [
    sounds.read(sounds.files.index(file), encoder.sample_rate)[0] for file in artifacts.files[clips]
]
class_name = artifacts.classes[target]
print(
    f"{class_name}: {len(neurons)} neurons of {settings.encoder(model).label}, {len(clips)} test clips"
)


# %%
def log_probability():
    """Mean log-probability of the class over its test clips, nats."""
    with torch.no_grad():
        embeddings = encoder.embed(torch.from_numpy(np.stack(waves)).to(encoder.device))
    return classifier.log_probabilities(embeddings.cpu().numpy())[:, target].mean()


def change(silenced_neurons):
    """Change of the log-probability when some neurons are silenced, nats."""
    with silenced(encoder, silenced_neurons):
        return log_probability() - before


before = log_probability()
of_class = change(neurons)

rng = np.random.default_rng(0)
width = selection.entropy.shape[1]
per_layer = np.bincount(neurons[:, 0])  # neurons of the class in each layer
layer_matched, matched = [], []
for _draw in range(9):
    drawn = [
        (layer, n) for layer, k in enumerate(per_layer) for n in rng.choice(width, k, replace=False)
    ]
    layer_matched.append(change(np.array(drawn)))
    matched.append(change(activity_matched(neurons, trained[:, :, target], rng)))

# %% [markdown]
# Two kinds of random sets are shown. *As many in each layer* ignores how active neurons are; most neurons are hardly active,
# so that silencing them changes little, and this comparison is easy to win. *Activity-matched* sets are as active in the
# class as its own neurons, layer by layer. **This second comparison decides**: only if the class's neurons lower it further
# than activity-matched sets do they matter beyond their activity.

# %%
compared = [
    ("random, as many in each layer", layer_matched, "0.7", "o"),
    ("random, activity-matched (decides)", matched, "#E69F00", "o"),
    (f"neurons of {class_name}", [of_class], "#0072B2", "D"),
]
lower = np.sum(np.array(matched) <= of_class)
picture, axes = plt.subplots(figsize=(7, 2.2), layout="constrained")
for height, row in enumerate(compared):
    axes.scatter(row[1], np.full(len(row[1]), height), color=row[2], marker=row[3])
axes.set_yticks(range(len(compared)), [row[0] for row in compared])
axes.axvline(0, color="0.8", lw=1)
axes.set(
    xlabel=f"change of the log-probability of {class_name} (nats)", ylim=(-0.5, len(compared) - 0.5)
)
title = axes.set_title(
    f"{lower} of {len(matched)} activity-matched sets lower {class_name} at least as far as its own neurons",
    fontsize=10,
)

# %%
summary = [(label, np.mean(c), np.min(c), np.max(c)) for label, c, *_colour in compared]
table(pd.DataFrame(summary, columns=["silenced", "mean change (nats)", "lowest", "highest"]))

# %% [markdown]
# ## 2. The study's targets
#
# The targets stand in the study file and were written before any result was known. With `identify: train`, neurons are chosen
# on training clips and tested on others. *Specific* means the neurons of one class; *shared* means those that are specific to
# each of several classes.

# %%
targets = [
    {"task": t.task, "classes": ", ".join(t.classes), "mode": t.mode}
    for t in settings.ablation.targets
]
table(pd.DataFrame(targets))

# %% [markdown]
# The figures show the change of log-probability when the neurons are *mean-ablated*: their activations are replaced by their
# mean over the training clips, so that nothing leaves the range that the encoder knows. The *effect* is the change in the
# target's class minus the change in the other classes, so that a set that disturbs everything has no effect.

# %%
result = ablate(settings, device=device, batch_size=batch_size)
figures.show(result)

# %% [markdown]
# **The intact classifier** on the test clips: accuracy (share) and mean log-probability of the true class. If the classifier
# is at chance, the ablation says nothing.

# %%
classifiers = result.classifier[result.classifier["class"] == "all classes"]
classifier_columns = {
    "task": "task",
    "model": "model",
    "clips": "clips",
    "accuracy": "accuracy",
    "log_probability": "log-probability (nats)",
}
table(classifiers, classifier_columns, rows=60, csv="ablation_classifier.csv")

# %% [markdown]
# **Targeted neurons and activity-matched random sets**, first by log-probability, the finer measure, then by accuracy in
# points. *Overlap* is the share of the target's own neurons that such a random set contains on average: where it is large, the
# comparison is partly of the target with itself. *Disjoint sets* contain none of them, but are less well matched. p = (1 +
# number of sets as low) / (1 + number of sets), and q is corrected over the targeted classes of a model. A star marks a q that
# would be smaller with more sets. The CSV also holds two-sided p and the other modes.

# %%
table(result.table(), rows=60, csv="ablation_effects.csv")

# %%
table(result.table("accuracy"), rows=60, csv="ablation_effects.csv")

# %%
Markdown(f"**{result.verdict()}**")

# %% [markdown]
# **What could have been found.** A result that is not significant is only informative if an effect could have been detected.
# *Detectable*: an effect below this value would have reached q < 0.05 by itself, if the effects of random sets are normally
# distributed. Where it is far below zero, a large q says little.

# %%
table(result.power(), rows=60, csv="ablation_effects.csv")

# %% [markdown]
# ## 3. Other ways to change the neurons
#
# The change of log-probability (nats) in the targeted classes minus that of other classes: the neurons mean-ablated; the
# neurons silenced; and the paper's control (each neuron's successor silenced).

# %%
wanted = result.effects.targeted & (result.effects.measure == "log_probability")
rows = result.effects[wanted].assign(target=result.effects.task + ": " + result.effects.target)
by_kind = rows.pivot_table(
    index=["target", "class", "model"], columns="kind", values="effect", sort=False
)
table(by_kind.reset_index(), rows=60, csv="ablation_effects.csv")

# %% [markdown]
# ## 4. Which criterion finds the neurons that a classifier needs?
#
# AAPE is one way to rank neurons for a class; there are others. Here every criterion chooses equally many neurons per class on
# training clips, these are mean-ablated, and held-out clips are classified by a linear classifier and by the nearest class
# mean. *Attribution* is the gradient of the class's log-probability times the activations, from one backward pass. It
# differentiates the linear classifier, so that its effect there is partly circular; no criterion uses the nearest class mean.
# The effect is the change in the class minus the change in the others (nats), with a 95 % interval over classes. This is an
# example with a few classes, drawn by a seed, on the task of part 1. `python -m benchmarks.criteria` does it at length.

# %%
rivals = ["aape", "p_difference", "probeless", "attribution_zero", "attribution_mean", "random"]
with_neurons = selection.per_class[selection.per_class > 0].index
comparison = compare_criteria(
    encoder,
    sounds,
    artifacts,
    rivals,
    k=20,
    classes=draw_classes(list(with_neurons), 3, seed=1),
    tested=[fold.name],
    modes=["mean"],
    draws=1,
    panel=2,
    options={"aape": how},
    out_dir=result.directory / "ablations" / "criteria",
    device=device,
)
criteria(
    comparison.summary(),
    f"{encoder.name} on {task}, {len(comparison.rows['class'].unique())} classes",
)

# %%
table(comparison.table())

# %%
print("written to", result.directory)
sorted(path.name for path in result.directory.glob("ablation_*"))
