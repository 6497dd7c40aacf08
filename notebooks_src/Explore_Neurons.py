# %% [markdown]
# # Hear what a neuron listens to
#
# One neuron of one model on one task: how active it is by class beside what permuted labels give, the clips that excite
# it most, contrasts and random examples, and where in time and frequency it is active (in colour, over the spectrogram). The atlas at the end has a page for the strongest neurons of every class.
#
# Needs the artifacts of the study's collecting pass and its audio. The atlas of the study `miniature` takes some
# minutes the first time; what was built is kept.

# %% tags=["parameters"]
study = "miniature"  # a study in studies/, or the path of your own study file
model = "ssl"  # any model of the study
task = "esc50"  # any task of the study
layer, neuron = None, None  # counted from 0; None: the strongest of the task

# %%
import common
from aape import select, show_neuron
from aape.figures.tables import table

settings = common.load_study(study)
artifacts = common.load_artifacts(settings.artifacts_directory(task, model))
encoder, clips = common.load_encoder(settings, model), common.load_task(settings, task)

# %% [markdown]
# The neurons that are specific to some class, strongest first:

# %%
selection = select(artifacts, **settings.select_by(task), encoder=encoder, task=clips)
neurons = selection.table()
table(neurons.drop(columns="remark"), rows=8)

# %%
shown = tuple(neurons.loc[0, ["layer", "neuron"]]) if neuron is None else (layer, neuron)
show_neuron(artifacts, encoder, clips, int(shown[0]), int(shown[1]), selection=selection)

# %% [markdown]
# The atlas: open the address below in a browser. Where Jupyter runs on another machine, copy the folder here first.

# %%
from aape.atlas import build_study

page = build_study(settings, models=[model], tasks=[task])
print(page.resolve().as_uri())
