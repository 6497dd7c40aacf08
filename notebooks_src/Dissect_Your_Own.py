# %% [markdown]
# # Dissect your own model on your own sounds
#
# Any audio Transformer of the Hub (or a folder that `save_pretrained` wrote), any folder of sounds: which neurons are
# specific to which class, what chance gives, and whether a classifier loses a class when its neurons are silenced.
#
# Cost: one forward pass per clip; the ablation runs the test clips of two classes through the model again for every
# control set, and says beforehand how much that is. What is done is kept below `out`, and a second run goes on from it.

# %% tags=["parameters"]
model = "openai/whisper-tiny"  # a name on the Hub, or a folder
sounds = "my_sounds"  # class folders, split/class folders, or anything that the pattern describes
pattern = None  # of the paths below it, such as "{label}_{group}_{take}.wav"
clip_seconds = None  # what clips are cut or padded to, s; None: their median length
rate = 0.02  # share of the neurons that are kept
permutations = 200  # of the labels
controls = 39  # random sets of neurons
out = "outputs/mine"

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import aape
from aape.atlas.build import build_atlas
from aape.figures import ablation, activity
from aape.figures.tables import table

task = aape.from_folder(sounds, clip_seconds=clip_seconds, pattern=pattern)
task

# %%
encoder = aape.from_hub(model)
encoder

# %% [markdown]
# **Collect**: every clip through the model once, counting in how many tokens each neuron is active.

# %%
artifacts = aape.collect(encoder, task, Path(out) / task.name)
picture = activity.activity_by_layer(artifacts)

# %%
artifacts

# %% [markdown]
# **Select** the class-specific neurons, and set them against permuted labels: clips of one group (recording, speaker)
# move together. The selection keeps the same share of neurons whatever the labels say, and neurons that prefer no class
# count for many at once: a grey bar shorter than its orange line is common and no sign of chance. The blue ones count:
# more active in the class than permuted labels give, at a false-discovery rate of 5 %.

# %%
selection = aape.select(artifacts, rate=rate)
calibrated = aape.calibrate(artifacts, selection, permutations=permutations)
plt.rcParams["text.parse_math"] = False  # a class may be called US$
low, high = np.quantile(calibrated.null.per_class, [0.025, 0.975], axis=0)
place = np.arange(len(task.classes))
picture, axes = plt.subplots(figsize=(6.4, 0.22 * len(place) + 1), layout="constrained")
axes.barh(place, selection.per_class, color="0.75", label="selected")
axes.barh(place, calibrated.per_class, color="#0072B2", label="calibrated")
axes.hlines(place, low, high, color="#D55E00", lw=2, label="permuted labels, 95 %")
axes.set_yticks(place, task.classes, fontsize=8)
axes.set(xlabel="class-specific neurons")
legend = picture.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=8)

# %%
by_class = pd.DataFrame({"neurons": selection.per_class, "permuted, 97.5 %": high, "calibrated": calibrated.per_class})
table(by_class.rename_axis("class").sort_values("calibrated", ascending=False), rows=60)

# %%
neurons_csv = artifacts.path / "neurons.csv"
calibrated.table().to_csv(neurons_csv, index=False)
table(calibrated.table().drop(columns="remark"), csv=str(neurons_csv))

# %% [markdown]
# **Silence** the neurons of the two classes that have most, under a classifier that was trained on the intact model, and
# set each drop against random sets of neurons.

# %%
most = selection.per_class.nlargest(2)
result = aape.ablate(encoder, task, artifacts, targets=list(most.index[most > 0]), controls=controls, rate=rate)
ablation.show(result)

# %%
table(result.table(), rows=60, csv="ablation_effects.csv")

# %% [markdown]
# **Hear** what the neurons listen to: open this page in a browser. It needs no server and no network.

# %%
page = build_atlas(artifacts, encoder, task, Path(out) / "atlas", selection=selection)
print("open", page.resolve())
print("tables and figures:", Path(result.directory).resolve())
