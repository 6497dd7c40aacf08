# %% [markdown]
# # Ablations: does it matter?
#
# A linear classifier is trained on clip embeddings of the intact encoder. Then neurons are silenced in the encoder, the
# test clips are embedded again, and the unchanged classifier is tested. Each drop stands against many random sets of
# neurons that were silenced in the same way. Part 1 does that for one class, in plain cells; the rest for every target
# that the study names beforehand.
#
# Needs the artifacts of the collecting notebooks and the audio of the test clips. Cost: one pass over the layers that
# follow, per test clip and set, with a progress bar: a few minutes for `miniature` on two CPU cores. What is done is kept
# in `outputs/<study>/ablations/`, so a run that was cut off goes on, and a second one takes seconds.

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
# The task of the study's first target (or its first task), its first model, and of that the class with most neurons. The neurons are
# chosen on training clips, the classifier is fitted on them, and both are tested on others.

# %%
task = next((stated.task for stated in settings.ablation.targets), next(iter(settings.tasks)))
model = next(iter(settings.encoders))
artifacts = load_artifacts(settings.artifacts_directory(task, model))
encoder, sounds = load_encoder(settings, model).to(device or "cpu"), load_task(settings, task)

fold = folds(artifacts.splits, artifacts.labels, artifacts.classes)[0]
classifier = fit(artifacts.embeddings(), artifacts.labels, artifacts.classes, fold)
trained = artifacts.probabilities(clips=fold.fit)  # [layers, neurons, classes]
how = settings.selection.model_dump(exclude={"criterion"}) | {"rate": settings.rate(task)}
selection = select(trained, classes=artifacts.classes, **how)
target = int(np.argmax(selection.per_class))
neurons = selection.neurons(target)  # [k, 2] of (layer, neuron)
clips = fold.test[artifacts.labels[fold.test] == target][:50]
waves = [sounds.read(sounds.files.index(file), encoder.sample_rate)[0] for file in artifacts.files[clips]]
print(f"{artifacts.classes[target]}: {len(neurons)} neurons of {model}, {len(clips)} test clips")


# %%
def log_probability():
    """Mean log-probability of the class over its test clips, nats."""
    with torch.no_grad():
        embeddings = encoder.embed(torch.from_numpy(np.stack(waves)).to(encoder.device))
    return classifier.log_probabilities(embeddings.cpu().numpy())[:, target].mean()


before = log_probability()
with silenced(encoder, neurons):
    after = log_probability()
rng, width = np.random.default_rng(0), selection.entropy.shape[1]
in_layers = np.bincount(neurons[:, 0])  # neurons of the target by layer
controls = []
for _ in range(9):
    drawn = [(layer, n) for layer, k in enumerate(in_layers) for n in rng.choice(width, k, replace=False)]
    with silenced(encoder, np.array(drawn)):
        controls.append(log_probability())

changes = np.array(controls) - before
picture, axes = plt.subplots(figsize=(6.4, 1.6), layout="constrained")
axes.scatter(changes, 0 * changes, color="0.6", label="random neurons, as many in each layer")
axes.scatter(after - before, 0, color="#D55E00", marker="D", label=f"neurons of {artifacts.classes[target]}")
axes.axvline(0, color="0.8", lw=1)
axes.set(xlabel="change of the class's log-probability (nats)", yticks=[])
legend = picture.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=8)

# %%
what = ["nothing", f"neurons of {artifacts.classes[target]}", "random neurons (mean)"]
change = [0.0, after - before, changes.mean()]
table(pd.DataFrame({"silenced": what, "log-probability (nats)": [before, after, np.mean(controls)], "change": change}))

# %% [markdown]
# ## 2. The study's targets
#
# They stand in the study file and were written before any result. `identify: train` means that the neurons are chosen
# on training clips and tested on others. *Specific*: of one class; *shared*: of each of several.

# %%
targets = [{"task": t.task, "classes": ", ".join(t.classes), "mode": t.mode} for t in settings.ablation.targets]
table(pd.DataFrame(targets))

# %%
result = ablate(settings, device=device, batch_size=batch_size)
figures.show(result)

# %% [markdown]
# **The classifier**, intact, on the test clips: accuracy (share) and mean log-probability of the true class (nats).

# %%
judges = result.classifier[result.classifier["class"] == "all classes"]
judge_columns = {
    "task": "task",
    "model": "model",
    "clips": "clips",
    "accuracy": "accuracy",
    "log_probability": "log-probability (nats)",
}
table(judges, judge_columns, rows=60, csv="ablation_classifier.csv")

# %% [markdown]
# **Targeted neurons against random ones.** Here the neurons are mean-ablated: their activations are replaced by the mean over
# the training clips, so that nothing leaves the range that the encoder knows. *Effect*: the change on the class's test
# clips minus that on the test clips of other classes, with a 95 % interval (bootstrap-t over groups of clips).
# *Activity-matched sets*: random neurons that are as active in the class, layer by layer; mean and standard deviation of
# their effects, and their number n. Drawing ends early where more sets cannot make a difference. *Overlap*: the share of
# the target's own neurons that such a set contains. *Disjoint sets*: near in activity, without any of the target's
# neurons. *q*: from p = (1 + sets as low) / (1 + n), over the targeted classes of the model; a star says that no set was
# as low, so that q would be smaller with more sets. First the log-probability of the true class, which is the finer
# measure, then accuracy in points.

# %%
table(result.table(), rows=60, csv="ablation_effects.csv")

# %%
table(result.table("accuracy"), rows=60, csv="ablation_effects.csv")

# %%
Markdown(result.verdict())

# %% [markdown]
# **What would have been found?** *Detectable*: an effect below this value would have reached q < 0.05 by itself, if the
# effects of random sets are normally distributed. Where it is far below zero, a large q says little.

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
by_kind = rows.pivot_table(index=["target", "class", "model"], columns="kind", values="effect", sort=False)
table(by_kind.reset_index(), rows=60, csv="ablation_effects.csv")

# %% [markdown]
# ## 4. Which criterion finds the neurons that matter?
#
# AAPE is one way to say which neurons belong to a class; others stand beside it. Equally many neurons a class by each of
# them, chosen on training clips, are put to their mean, and held-out clips are judged: by a linear classifier, and by the
# nearest class mean. *Attribution* is the gradient of the class's log-probability times the activations, from one backward
# pass (`aape.causal.attribution`). An effect is the change of log-probability (nats) in the class less that in the others, in
# brackets a 95 % interval over classes; *less as active*: minus that of random sets as active in the class. A few classes
# drawn by a seed, on the task of part 1: an example. `python -m benchmarks.criteria` does it at length.

# %%
rivals = ["aape", "p_difference", "probeless", "attribution_zero", "attribution_mean", "random"]
with_neurons = selection.per_class[selection.per_class > 0].index
contest = compare_criteria(
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
criteria(contest.summary(), f"{encoder.name} on {task}, {len(contest.rows['class'].unique())} classes")

# %%
table(contest.table())

# %%
print("written to", result.directory)
sorted(path.name for path in result.directory.glob("ablation_*"))
