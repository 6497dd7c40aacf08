# %% [markdown]
# # The collecting pass: any model, any task
#
# Runs every clip of the task through the frozen model once, counts in how many tokens of each clip every MLP neuron is
# active (> 0), embeds the clips, and writes `over_zero.pt` and the other artifacts that the analysis and the ablations
# load. What the study calls by these names, and whether it stands in for something else, is printed below.
#
# Cost: one forward pass per clip, with a progress bar: seconds for the study `miniature`; for ViT-Base about 0.3 s per
# 5 s clip on two CPU cores, a few milliseconds on a GPU. A pass that was cut off goes on where it stopped, one that is
# whole is loaded at once, and a task with the audio of another one takes that pass over.

# %% tags=["parameters"]
study = "miniature"  # a study in studies/, or the path of your own study file
model = "ssl"  # any model of the study
task = "esc50"  # any task of the study
device = None  # None: CUDA if there, else CPU; or "cpu", "cuda:1", "mps"
batch_size = None  # None: the study's

# %%
from IPython.display import Markdown

import common

settings = common.load_study(study)
Markdown(settings.heading(model, task))

# %%
artifacts = common.collect_study(study, model, task, device=device, batch_size=batch_size)

# %% [markdown]
# How active each layer is, and what was collected:

# %%
picture = common.figures.activity_by_layer(artifacts)
# %%
artifacts
