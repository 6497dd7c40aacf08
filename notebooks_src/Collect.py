# %% [markdown]
# # Collecting activations: any model on any task
#
# A *neuron* is one channel of one Transformer block's MLP, after the activation function. It is *active* at a token if its
# activation is greater than 0. This notebook first counts active tokens by hand for one clip. It then runs every clip of
# the task through the frozen model, counts for every neuron and clip, and writes `over_zero.pt` (activation probabilities
# per class) and the other artifacts that the analysis and the ablations load.
#
# The next cells print which model and which dataset these are, and whether they are substitutes for those of the paper.
#
# **Cost:** one forward pass per clip, with a progress bar. This takes seconds for the study `miniature`. For ViT-Base it
# takes about 0.3 s per 5 s clip on two CPU cores and a few milliseconds on a GPU. A pass that was interrupted resumes, and
# a finished pass is simply loaded.

# %% tags=["parameters"]
study = "miniature"  # a study in studies/, or the path of your own study file
model = "ssl"  # any model of the study
task = "esc50"  # any task of the study
device = None  # None: CUDA if available, else the CPU; or "cpu", "cuda:1", "mps"
batch_size = None  # None: the study's

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Audio, Markdown

import aape
import common

settings = common.load_study(study)
Markdown(settings.heading(model, task))

# %% [markdown]
# ## One clip by hand
#
# The first clip of the task, as the model receives it:

# %%
encoder = common.load_encoder(settings, model)
sounds = common.load_task(settings, task)
clip = 0
wave, valid_samples = sounds.read(clip, encoder.sample_rate)
print(f"{sounds.files[clip]}: {sounds.classes[sounds.labels[clip]]}")
Audio(wave, rate=encoder.sample_rate)

# %% [markdown]
# A forward hook on the activation function of one block keeps the activations of this clip. The model is not changed.

# %%
layer = len(encoder.layers) // 2
activations = []
hook = encoder.activations[encoder.layers[layer]].register_forward_hook(
    lambda module, inputs, output: activations.append(output.detach().reshape(-1, output.shape[-1]))
)
with torch.no_grad():
    encoder.embed(torch.from_numpy(wave)[None].to(encoder.device))
hook.remove()
a = torch.cat(activations).cpu()  # [tokens, neurons]
active = a > 0
count = active.sum(dim=0).numpy()  # active tokens per neuron

tokens, neurons = a.shape
neuron = int(
    np.argmin(np.abs(count / tokens - 0.5))
)  # one that is active at about half of the tokens
print(f"layer {layer}: {tokens} tokens, {neurons:,} neurons")
print(
    f"neuron {neuron} is active at {count[neuron]} of {tokens} tokens of this clip: {count[neuron] / tokens:.0%}"
)

# %% [markdown]
# Where this neuron is active in the clip: its activation at each token, laid out on the model's own grid of tokens over
# time (and over frequency, if the tokens are patches), above the log-mel spectrogram of the clip.

# %%
if encoder.token_grid is None or encoder.log_mel is None:
    print(
        "This encoder does not say where its tokens lie in the sound (token_grid, log_mel), so there is no picture."
    )
else:
    activation_map = aape.token_maps(encoder, [[layer, neuron]], wave[None])[
        0, 0
    ]  # [frequency, time]
    spectrogram = encoder.log_mel(torch.from_numpy(wave)[None]).squeeze().numpy()  # [bands, frames]
    extent = (0, len(wave) / encoder.sample_rate, 0, len(spectrogram))
    visible = np.where(activation_map > 0, activation_map, np.nan)
    picture, axes = plt.subplots(figsize=(7, 2.6), layout="constrained")
    axes.imshow(spectrogram, origin="lower", aspect="auto", cmap="gray_r", extent=extent)
    orange = axes.imshow(
        visible, origin="lower", aspect="auto", cmap="Oranges", alpha=0.6, vmin=0, extent=extent
    )
    axes.set(
        xlabel="time (s)",
        ylabel="mel band",
        title=f"Layer {layer}, neuron {neuron}: orange where it is active",
    )
    bar = picture.colorbar(orange, label="activation")

# %% [markdown]
# ## All clips
#
# One call does the same for every clip, layer and neuron of the task and embeds the clips for the classifiers:

# %%
artifacts = common.collect_study(study, model, task, device=device, batch_size=batch_size)

# %% [markdown]
# The count by hand equals what the pass wrote. Only activations within rounding of 0 could differ, because rounding depends
# on the batch size.

# %%
collected = artifacts.counts[artifacts.files.tolist().index(sounds.files[clip]), layer].astype(int)
near_zero = (a.abs() < 1e-4).sum(dim=0).numpy()
assert (np.abs(collected - count) <= near_zero).all()
print(f"{(collected == count).mean():.2%} of the {neurons:,} counts of layer {layer} are equal")

# %% [markdown]
# The **activation probability** of a neuron for a class is the share of active tokens over all tokens of the class's clips:

# %%
of_class = artifacts.labels == sounds.labels[clip]
by_hand = (
    artifacts.counts[of_class, layer, neuron].sum(dtype=int) / artifacts.tokens[of_class].sum()
)
stored = float(artifacts.over_zero[layer, neuron, sounds.labels[clip]])
print(f"neuron {neuron} of layer {layer}: p = {by_hand:.3f} by hand, {stored:.3f} in over_zero.pt")

# %% [markdown]
# How active each layer is over all clips, and what was collected:

# %%
picture = common.figures.activity_by_layer(artifacts)

# %%
artifacts
