"""The collecting notebooks: one template, one table of models and datasets."""

from __future__ import annotations

from dataclasses import dataclass

Cell = tuple[str, str]  # "markdown" or "code", source


@dataclass(frozen=True)
class Dataset:
    """A row of the table: how the notebook's file calls it, the task, and what a full-size pass costs."""

    notebook: str
    task: str
    title: str
    clips: str
    units: str


DATASETS = (
    Dataset("ESC50", "esc50", "ESC-50", "2,000 recordings of 5 s", "environmental sounds, 50 classes, 5 folds"),
    Dataset("GISE51", "gise51", "GISE-51", "about 16,000 isolated events", "sound events, 51 classes"),
    Dataset("VoxForge", "voxforge", "VoxForge", "176,438 utterances", "6 languages"),
    Dataset("VC1_gender", "vc1_gender", "VoxCeleb1, gender", "153,516 utterances", "gender of 1,251 speakers"),
    Dataset("VC1_country", "vc1_country", "VoxCeleb1, country", "153,516 utterances", "nationality of 1,251 speakers"),
    Dataset("CREMAD", "cremad", "CREMA-D, emotion", "7,442 utterances", "6 emotions"),
    Dataset("CREMAD_gender", "cremad_gender", "CREMA-D, gender", "7,442 utterances", "gender of 91 actors"),
    Dataset("GTZAN", "gtzan", "GTZAN", "930 of 1,000 excerpts of 30 s, fault-filtered", "10 genres"),
    Dataset(
        "NSPitch", "nspitch", "NSynth, pitch", "305,979 notes", "MIDI pitch of acoustic and electronic instruments"
    ),
    Dataset("Surge", "surge", "Surge, pitch", "synthesiser notes", "88 MIDI pitches"),
)
MODELS = {"M2D": "the self-supervised ViT (M2D in the paper)", "ViT": "the supervised ViT of the same shape"}
ROLES = {"M2D": "ssl", "ViT": "sl"}  # the models' names in the shipped studies
# Tasks on the same audio as an earlier one: their notebooks take that pass over.
SHARED_AUDIO = {"vc1_country": "vc1_gender", "cremad_gender": "cremad"}


def cells(model: str, dataset: Dataset) -> list[Cell]:
    """The cells of one collecting notebook; the first code cell holds its parameters."""
    shared = ""
    if dataset.task in SHARED_AUDIO:
        shared = (
            f" It has the audio of `{SHARED_AUDIO[dataset.task]}`: where that is collected already, its counts are "
            "taken over and no clip is heard twice."
        )
    return [
        (
            "markdown",
            f"# {model} on {dataset.title}\n\n"
            f"Runs {dataset.title} ({dataset.clips}: {dataset.units}) through {MODELS[model]}, counts in how many "
            "tokens of each clip every MLP neuron is active (> 0), embeds the clips, and writes `over_zero.pt` and "
            f"the other artifacts that the analysis and ablation notebooks load.{shared}\n\n"
            "Cost: one forward pass per clip, with a progress bar. The `miniature` study takes seconds; ViT-Base takes "
            "about 0.3 s per 5 s clip on two CPU cores, a few milliseconds on a GPU. A pass that was cut off goes on "
            "where it stopped, and one that is whole is loaded at once.",
        ),
        (
            "code",
            'study = "miniature"  # "miniature", "esc50", "paper", or the path of a study file\n'
            f'model = "{ROLES[model]}"  # or "untrained": the same shape with random weights\n'
            f'task = "{dataset.task}"\n'
            'device = None  # None: CUDA if there, else CPU; or "cpu", "cuda:1", "mps"\n'
            "batch_size = None  # None: the study's",
        ),
        (
            "code",
            "import common\n\n"
            'common.check_parameters(globals(), "study model task device batch_size")\n'
            "artifacts = common.collect_study(study, model, task, device=device, batch_size=batch_size)",
        ),
        ("code", "common.describe(study, artifacts)"),
        ("code", "common.figures.activity_by_layer(artifacts);"),
    ]
