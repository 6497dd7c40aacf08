# %% [markdown]
# # Dissect your own model on your own sounds
#
# Give any audio Transformer of the Hub (or a folder that `save_pretrained` wrote) and any folder of sounds. You learn which
# neurons are specific to which class, how that compares with chance, and whether a classifier loses a class when its neurons
# are silenced.
#
# **Cost:** one forward pass per clip. The ablation runs the test clips of two classes through the model again for every
# control set, and says beforehand how much that is. Results are kept below `out`, and a second run resumes from them.

# %% tags=["parameters"]
model = "openai/whisper-tiny"  # a name on the Hub, or a folder
sounds = (
    "my_sounds"  # one subfolder per class, split/class folders, or files that the pattern describes
)
pattern = None  # of the file names, such as "{label}_{group}_{take}.wav"
clip_seconds = (
    None  # clips are cut or padded to this length, s; None: a length that few of the clips exceed
)
rate = 0.02  # share of the neurons that are kept
permutations = 200  # of the labels
controls = 79  # random sets of neurons per class
out = "outputs/mine"

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import aape
from aape.figures import ablation, activity
from aape.figures.tables import table

task = aape.from_folder(sounds, clip_seconds=clip_seconds, pattern=pattern)
task

# %%
encoder = aape.from_hub(model)
encoder

# %% [markdown]
# ## Collect
#
# Every clip goes through the model once. For every neuron and clip, the number of tokens at which the neuron is active (> 0)
# is counted.

# %%
artifacts = aape.collect(encoder, task, Path(out) / task.name)
picture = activity.activity_by_layer(artifacts)

# %%
artifacts

# %% [markdown]
# ## Select, and compare with permuted labels
#
# The selection keeps the neurons of lowest AAPE, that is, of lowest entropy of their activation probability over the classes.
# It always keeps the same share of neurons, whatever the labels say. Therefore the labels are permuted (clips of one recording or speaker stay
# together) and everything is selected again.
#
# How to read the next figure: a neuron without any preference is counted for many classes at once, so that the selected
# number (grey) is often *below* the permuted range (orange). That does not mean that the class has no neurons. Look at the
# blue bars: *calibrated* neurons are those with q < 0.05 against permuted labels **and** an activation probability that is at
# least 0.1 higher inside the class than outside it, in a task that passes a test as a whole.

# %%
selection = aape.select(artifacts, rate=rate)
calibrated = aape.calibrate(artifacts, selection, permutations=permutations)
low, high = np.quantile(calibrated.null.per_class, [0.025, 0.975], axis=0)
place = np.arange(len(task.classes))
plt.rcParams["text.parse_math"] = False  # a class may be called US$
picture, axes = plt.subplots(figsize=(6.4, 0.22 * len(place) + 1.2), layout="constrained")
axes.barh(place, selection.per_class, color="0.75", label="selected")
axes.barh(place, calibrated.per_class, color="#0072B2", label="calibrated")
axes.hlines(place, low, high, color="#E69F00", lw=2, label="permuted labels, 95 %")
axes.set_yticks(place, task.classes, fontsize=8)
axes.set(xlabel="class-specific neurons")
axes.set_title(
    f"{(calibrated.per_class > 0).sum()} of {len(place)} classes have calibrated neurons",
    fontsize=10,
)
legend = picture.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)

# %%
by_class = pd.DataFrame(
    {"selected": selection.per_class, "permuted, 97.5 %": high, "calibrated": calibrated.per_class}
)
table(by_class.rename_axis("class").sort_values("calibrated", ascending=False), rows=60)

# %%
neurons_csv = artifacts.path / "neurons.csv"
calibrated.table().to_csv(neurons_csv, index=False)
table(calibrated.table().drop(columns="remark"), csv=str(neurons_csv))

# %% [markdown]
# ## Silence
#
# A classifier is trained on the embeddings of the intact model. Then the neurons of the two classes that have most of them
# are changed, and the unchanged classifier is tested. Each drop is compared with that of random sets of neurons that are
# equally active in the class.

# %%
most = selection.per_class.nlargest(2)
result = aape.ablate(
    encoder, task, artifacts, targets=list(most.index[most > 0]), controls=controls, rate=rate
)
ablation.show(result)

# %%
table(result.table(), rows=60, csv="ablation_effects.csv")

# %% [markdown]
# **Which neurons does the classifier need?** AAPE finds neurons that *respond* to a class. Attribution finds neurons that the
# classifier's decision depends on, by one backward pass. `aape.rank` gives its scores, and `select` takes them in place of
# AAPE.

# %%
scores = aape.rank(artifacts, "attribution_mean", encoder=encoder, task=task)
needed = aape.select(artifacts, rate=rate, scores=scores)
both = int((needed.members & selection.members).sum())
print(
    f"{both} of {needed.members.sum()} pairs of neuron and class that attribution finds are also found by AAPE"
)
table(needed.table().drop(columns="remark"), rows=10)

# %% [markdown]
# ## Hear
#
# Open this page in a browser to hear what the neurons respond to. It needs no server and no network.

# %%
page = aape.build_atlas(artifacts, encoder, task, Path(out) / "atlas", selection=selection)
print("open", page.resolve())
print("tables and figures:", Path(result.directory).resolve())
