"""Ablations.ipynb: the study's targets silenced, end to end."""

from __future__ import annotations

from notebooks_src.collecting import Cell


def cells() -> list[Cell]:
    """The cells; the first code cell holds the parameters."""
    return [
        (
            "markdown",
            "# Ablations: does it matter?\n\n"
            "A linear classifier is trained on clip embeddings of the intact encoder. Then the neurons that the study "
            "names beforehand (specific to a class, or shared by two) are silenced in the encoder, the test clips are "
            "embedded again, and the unchanged classifier is tested, class by class. Each drop stands against many "
            "random sets of neurons that were silenced in the same way.\n\n"
            "Needs the artifacts of the collecting notebooks and the audio of the test clips. Cost: one pass over the "
            "layers that follow, per test clip and set, with a progress bar: about four minutes for `miniature` on two "
            "CPU cores. What is done is kept in `outputs/<study>/ablations/`, so a run that was cut off goes on, and a "
            "second one takes seconds.",
        ),
        (
            "code",
            'study = "miniature"  # "miniature", "esc50", "paper", or the path of a study file\n'
            'device = None  # None: CUDA if there, else CPU; or "cpu", "cuda:1", "mps"\n'
            "batch_size = None  # None: the study's",
        ),
        (
            "code",
            "import pandas as pd\n\n"
            "import common\n"
            "import common_analyze\n"
            "from aape.figures import ablation as figures\n\n"
            'common.check_parameters(globals(), "study device batch_size")\n'
            "settings = common.load_study(study)\n"
            "print(settings.description)\n"
            "print(settings.note)\n"
            'pd.set_option("display.precision", 3)\n'
            'pd.set_option("display.max_columns", 30)\n'
            'pd.set_option("display.max_rows", 200)\n'
            "pd.DataFrame([target.model_dump() for target in settings.ablation.targets])",
        ),
        (
            "markdown",
            "These targets, and the settings below, stand in the study file; they were written before any result. "
            "`identify: train` means that the neurons are chosen on training clips and tested on others.",
        ),
        ("code", 'pd.DataFrame({"value": settings.ablation.model_dump(exclude={"targets"})})'),
        ("code", "result = common_analyze.ablate(settings, device=device, batch_size=batch_size)"),
        (
            "markdown",
            "## The classifier\n\n"
            "Accuracy (share) and mean log-probability of the true class (nats) on the test clips, intact. Where the "
            "encoder itself has heard test clips in its training, `in_sample` counts them, and a second row holds the "
            "other clips alone.",
        ),
        (
            "code",
            'result.classifier[result.classifier["class"] == "all classes"].drop(columns="class")'
            ".reset_index(drop=True)",
        ),
        (
            "markdown",
            "## Targeted neurons against random ones\n\n"
            "`difference` is after minus before, on the class's test clips; `low` and `high` its 95 % interval by "
            "bootstrap over groups of clips; `refit_sd` how much it varies over classifiers refitted on bootstrapped "
            "training groups. `layer_` columns: random sets with the same number of neurons in each layer (mean, 95 % "
            "range, p = (1 + controls as low as the target) / (1 + controls), q over the targeted classes of the "
            "model). `rate_` columns, where the study asks for them: sets that are also of like activation rate. "
            "First the log-probability of the true class, which is the finer measure, then accuracy in points.",
        ),
        ("code", "result.summary()"),
        ("code", 'result.summary("accuracy")'),
        ("code", "print(result.verdict())"),
        (
            "markdown",
            "## Other ways to silence, other controls\n\n"
            "The targeted classes again: the paper's control (each index plus one), the neurons at their mean over the "
            "training clips instead of zero, and the neurons that all clips, the test clips among them, would have "
            "chosen (the paper's way). Then how far the two choices agree.",
        ),
        (
            "code",
            "targeted = result.effects[result.effects.targeted]\n"
            "targeted.pivot_table(\n"
            '    index=["measure", "task", "target", "class", "model"], columns="kind", values="difference", sort=False\n'
            ")",
        ),
        (
            "code",
            'result.identification.groupby(["task", "target", "mode", "model"], sort=False)'
            '[["training_clips", "all_clips", "both", "jaccard"]].mean()',
        ),
        (
            "code",
            'extra = result.controls[(result.controls.control == "rate-matched in the classes") & result.controls.targeted]\n'
            'extra.pivot_table(index=["task", "target", "class", "model"], columns="measure", values="difference", sort=False)',
        ),
        (
            "markdown",
            "## Figures\n\n"
            "Change per class, targeted against controls, for each target; the controls' distributions; the off-target "
            "matrix (neurons of the row's class silenced, the column's class measured; off its diagonal there are no "
            "controls); the dose response. All are saved as PDF and PNG beside the CSV files.",
        ),
        ("code", "figures.show(result)"),
        ("code", 'from pathlib import Path\n\nsorted(path.name for path in Path(result.directory).glob("ablation_*"))'),
    ]
