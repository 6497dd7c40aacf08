# %% [markdown]
# # Tuning: what does a neuron respond to?
#
# Auditory physiologists play test sounds to an animal and record its neurons. This notebook does the same with an audio
# Transformer. It needs no dataset and no labels.
#
# A *neuron* is one channel of a block's MLP after the activation function. We play about 900 sounds of one second: tones,
# noise, modulated sounds, sweeps, harmonic complexes, clicks, onsets and silence, each in four independent realisations
# (other phases, other noise). Cost: about half a minute of CPU time per model for whisper-tiny.

# %% tags=["parameters"]
model = "openai/whisper-tiny"  # a name on the Hub, or a folder that save_pretrained wrote
sounds = None  # a folder of natural sounds for the receptive fields in section 5, or None
clip_seconds = 2.0  # of these sounds
device = None  # None: CUDA if available, else the CPU
out = "outputs/tuning"

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Audio, display

import aape
from aape.figures import tuning as figures
from aape.tuning.battery import battery, waveform
from aape.tuning.responses import respond, tokens_in_window

encoder = aape.from_hub(model)
untrained = aape.from_hub(model, seed=0)
encoder

# %% [markdown]
# ## 1. One neuron and one tone, by hand
#
# We synthesise a tone, hook the MLP of the first layer, and look at what one neuron does at every token. The response window
# begins 0.1 s after the onset.

# %%
samples = encoder.dry_samples
table = battery(encoder.sample_rate, samples / encoder.sample_rate)
is_tone = (table.kind == "tone") & (table.level == -20) & (table.realisation == 0)
tones = table[is_tone]
row = tones.iloc[(tones.frequency - 1000).abs().argmin()]
wave = waveform(row, encoder.sample_rate, samples)

seen = []
hook = encoder.activations[encoder.layers[0]].register_forward_hook(
    lambda module, inputs, output: seen.append(output)
)
with torch.no_grad():
    encoder.embed(torch.from_numpy(wave)[None])
hook.remove()
activations = seen[0][0]  # [tokens, neurons]
window = tokens_in_window(encoder, samples, row.start, row.end)[0]
strongest = int(activations[window].mean(dim=0).argmax())

picture, axes = plt.subplots(figsize=(6.4, 2.2), layout="constrained")
axes.plot(activations[:, strongest], color="#0072B2")
axes.axvspan(window[0], window[-1], color="0.9", lw=0)
axes.set(
    xlabel="token",
    ylabel="activation",
    title=f"A tone of {row.frequency:.0f} Hz, neuron {strongest} of layer 0",
)
display(Audio(wave, rate=encoder.sample_rate))

# %% [markdown]
# The response is the mean activation in the shaded window, or the share of tokens in it with an activation above 0. This is
# exactly what the whole recording does:

# %%
recorded = respond(encoder, table.loc[[row.name]])
np.testing.assert_allclose(
    recorded["mean"][0, : activations.shape[1]],
    activations[window].mean(dim=0),
    rtol=1e-3,
    atol=1e-4,
)

# %% [markdown]
# ## 2. The battery
#
# Listen to one sound of every kind.

# %%
for kind, rows in table[table.start == table.start.min()].groupby("kind", sort=False):
    example = rows.iloc[len(rows) // 2]
    print(f"{kind}: {len(rows)} sounds")
    display(
        Audio(
            waveform(example, encoder.sample_rate, samples),
            rate=encoder.sample_rate,
            normalize=False,
        )
    )

# %% [markdown]
# ## 3. All neurons
#
# For every neuron we get curves (response as a function of frequency, modulation rate, fundamental, click rate, level) and
# contrasts (upward minus downward sweeps, tones minus noise, harmonic minus inharmonic, onset minus steady sound). A neuron is
# called *tuned* only if three things hold:
#
# - its curve repeats in independent realisations (correlation of halves at least 0.8),
# - it differs from what permuted stimuli give, at a false-discovery rate of 5 %,
# - and it is large: the curve spans at least half a standard deviation of the neuron's activation (or 0.2 in the share of
#   active tokens).
#
# The third condition matters. An untrained network is a deterministic function of its input, so even its faintest preference
# repeats perfectly.

# %%
tuning = aape.tune(encoder, out_dir=Path(out) / encoder.name, device=device)
twin = aape.tune(
    untrained, out_dir=Path(out) / untrained.name, device=device, measure=tuning.measure
)
tuning

# %% [markdown]
# Two measures of response were compared on held-out realisations. The better one is used; this is the evidence.

# %%
tuning.evidence.pivot_table(
    index=["measure", "curve"], columns="layer", values="correlation"
).round(3)

# %% [markdown]
# The share of tuned neurons in each layer, next to the same model with random weights:

# %%
models = {encoder.name: tuning, untrained.name: twin}
shares = pd.concat(
    {name: found.tuned_by_layer() for name, found in models.items()}, names=["model"]
)
shares.round(3)

# %%
figures.tuned_figure(models, "modulation")

# %%
figures.frequency_figure(models)

# %%
figures.reliability_figure(models)

# %% [markdown]
# ## 4. Single neurons
#
# Every neuron has a sentence that follows from its numbers. Here are neurons with sharp frequency tuning, at random ones of
# every layer.

# %%
neurons = tuning.table()
tuned = neurons[neurons.frequency_tuned]
examples = (tuned if len(tuned) else neurons).groupby("layer").sample(1, random_state=0)
examples[["layer", "neuron", "best_frequency_hz", "bandwidth_octaves", "sentence"]]

# %%
for _, shown in examples.iterrows():
    display(figures.neuron_figure(tuning, int(shown.layer), int(shown.neuron)))

# %% [markdown]
# ## 5. Receptive fields on natural sound
#
# Does tuning to tones say what a neuron does on natural sound? With a folder of sounds (`sounds` above) we regress every
# neuron's activation on 310 ms of spectrogram around each token and test the prediction on other recordings.

# %%
if sounds is not None:
    task = aape.from_folder(sounds, clip_seconds=clip_seconds)
    fields = {
        title: aape.receptive_fields(e, task)
        for title, e in [(encoder.name, encoder), (untrained.name, untrained)]
    }
    display(figures.predictability_figure(fields))
    best = fields[encoder.name].table().nlargest(3, "correlation")
    for layer, neuron in best[["layer", "neuron"]].to_numpy():
        display(figures.neuron_figure(tuning, int(layer), int(neuron), fields[encoder.name]))
