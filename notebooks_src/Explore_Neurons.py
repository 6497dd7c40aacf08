# %% [markdown]
# # Explore neurons: hear and see what one of them responds to
#
# The page below shows one neuron of one model on one task: how active it is in each class, the clips that excite it most,
# contrasting and random clips, and where in time and frequency it is active (in colour, over the spectrogram). The last cells
# build the atlas, which has such a page for the strongest neurons of every class.
#
# The notebook needs the artifacts of the study's collecting pass and its audio.
#
# **Cost:** seconds for one neuron. The atlas of one model and task takes about a minute the first time; results are kept.

# %% tags=["parameters"]
study = "miniature"  # a study in studies/, or the path of your own study file
model = "ssl"  # any model of the study
task = "esc50"  # any task of the study
layer, neuron = None, None  # counted from 0; None: one that detects its class well

# %%
import common
from aape import select, show_neuron
from aape.atlas import best_neuron, build_study
from aape.figures.tables import table

settings = common.load_study(study)
artifacts = common.load_artifacts(settings.artifacts_directory(task, model))
encoder = common.load_encoder(settings, model)
sounds = common.load_task(settings, task)
selection = select(artifacts, **settings.select_by(task))

# %% [markdown]
# ## One neuron
#
# If no neuron is named above, this is the one that detects its class best on held-out clips, among those that differ
# significantly from permuted labels.

# %%
shown = best_neuron(artifacts, selection) if neuron is None else (layer, neuron)
show_neuron(artifacts, encoder, sounds, *shown, selection=selection)

# %% [markdown]
# ## Others to look at
#
# Neurons that are specific to some class. The first rows have the largest difference of activation probability inside and
# outside the class. To see one of them, set `layer` and `neuron` above.

# %%
neurons = selection.table()
table(neurons.drop(columns="remark"), rows=12)

# %% [markdown]
# ## The atlas
#
# Open the file below in a browser. It needs no server. If Jupyter runs on another machine, copy the folder first.

# %%
page = build_study(settings, models=[model], tasks=[task])
print(page.resolve())
