"""GTZAN: 1,000 music clips of 30 s, ten genres; 930 of them in the fault-filtered split

G. Tzanetakis, P. Cook: "Musical genre classification of audio signals", IEEE Trans. Speech and Audio Processing 10,
2002. Split: C. Kereliuk et al. 2015, after B. L. Sturm.

The server of the audio is often down: any copy with <genre>/<genre>.000NN.wav somewhere below data/gtzan serves, such as
Kaggle's genres_original/. jazz.00054.wav, a training clip, is damaged in Kaggle's copies: it is reported as invalid,
which leaves 442. The lists of the split come from jongpillee/music_dataset_split at commit 07e8557. No group: the files
do not name the artist; keeping artists apart is what the filtered split is for.
"""

from __future__ import annotations

from aape.datasets.base import Dataset, Remote, Rows, Source, TaskFacts, parent_of
from aape.sounds.clips import Clip

_LISTS = "https://raw.githubusercontent.com/jongpillee/music_dataset_split/07e855758f180ac8bdc0e3abebbde19277094681/GTZAN_split"
_SHA256 = {
    "train": "2b04966cef1486f1a7767b74271533fa23e220388db804a1937835e1fc4fa3fa",
    "valid": "f8fbee7c52397a0e0f3a91dc54fedecb2e27f5bdc9a9daeab8cb10d077e26956",
    "test": "09cafa6a89ce0a27f30ed250d56ecb4d03c22fffb5a693f96c7ae655ee02ac72",
}
_AUDIO = "http://opihi.cs.uvic.ca/sound/genres.tar.gz"
REMOTES = (
    *(
        Remote(f"{s}_filtered.txt", f"{_LISTS}/{s}_filtered.txt", f"sha256:{_SHA256[s]}")
        for s in _SHA256
    ),
    Remote("genres.tar.gz", _AUDIO, "md5:5b3d6dddb579ab49814ab86dba69e7c7"),
)
COUNTS = {"clips": 930, "classes": 10, "train": 443, "valid": 197, "test": 290}


def rows(source: Source) -> Rows:
    """The three lists of the fault-filtered split: 443, 197 and 290 clips."""
    clips = []
    for split in _SHA256:
        names = source.companion(f"{split}_filtered.txt").read_text(encoding="utf-8").split()
        clips += [Clip(name, parent_of(name), split) for name in names]
    notes = ["jazz.00054.wav (a training clip) is damaged in the copies that circulate on Kaggle"]
    return Rows(clips, "fault-filtered lists of jongpillee/music_dataset_split", notes=notes)


_SOURCE = "the lists, counted; EVAR's README prints the same"
TASK = TaskFacts(rows, 30.0, COUNTS, _SOURCE, splits="fault-filtered", group="unknown")
_LICENCE = "none stated; the lists MIT"
DATASET = Dataset(
    name="gtzan",
    text=__doc__,
    size="about 1.2 GB",
    licence=_LICENCE,
    tasks={"gtzan": TASK},
    remotes=REMOTES,
)
