"""Our M2D against sampled numbers of the official code (M2D's runtime inside EVAR's AR_M2D).

tests/data/m2d_official.npz was written by `python -m benchmarks.compare_with_evar --write`, which needs an EVAR clone;
weights and inputs are drawn again here, by parameter name, from NumPy. The tolerance is for other machines: on the
machine that wrote the file all values were equal to the last bit.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import esc50_folder

from aape.encoders import m2d
from benchmarks import numpy_weights
from benchmarks.compare_with_evar import record

ACROSS_MACHINES = 1e-4


@pytest.fixture(scope="module")
def official():
    with np.load(Path(__file__).with_name("data") / "m2d_official.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    path = numpy_weights.save_checkpoint(tmp_path_factory.mktemp("official"))
    loaded = m2d.load(path)
    path.unlink()  # 340 MB; pytest keeps its last folders
    return loaded


@pytest.mark.parametrize("seconds", numpy_weights.SECONDS)
@pytest.mark.parametrize("source", ["noise", "real"])
def test_front_end_blocks_activations_and_embedding_are_the_official_ones(
    encoder, official, source, seconds
):
    if source == "real" and esc50_folder() is None:
        pytest.skip("ESC-50 is not here: set AAPE_ESC50 to its folder")
    wave = (
        numpy_weights.noise(seconds)
        if source == "noise"
        else numpy_weights.real(esc50_folder(), seconds)
    )
    tensors = record(encoder.embed, list(encoder.module.vit.blocks), wave)
    with torch.no_grad():
        tensors["log-mel"] = encoder.module.front_end(wave)
    assert len(tensors) == 2 + 12 + 12
    for key, tensor in tensors.items():
        stem = f"{source}-{seconds}/{key}"
        assert tuple(tensor.shape) == tuple(official[f"{stem}/shape"]), stem
        ours = tensor.flatten()[torch.from_numpy(official[f"{stem}/index"]).long()].numpy()
        theirs = official[f"{stem}/value"]
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=ACROSS_MACHINES, err_msg=stem)
        if key.startswith("act"):
            clear = np.abs(theirs) > 1e-5
            assert clear.sum() > 100, stem
            np.testing.assert_array_equal(ours[clear] > 0, theirs[clear] > 0, err_msg=stem)


def test_drawn_weights_are_the_ones_the_file_was_made_with():
    """A change of the drawing would show as differences everywhere; this says where they come from."""
    assert numpy_weights.draw("blocks.3.mlp.fc1.weight", (2, 2)).tolist() == [
        [-0.014332640916109085, 0.020983729511499405],
        [0.010755639523267746, 0.014451276510953903],
    ]
    assert abs(float(numpy_weights.noise(1.0).double().sum()) - 19.065932692270508) < 1e-6
