"""Names, files and conditions that do not fit are refused by a message that says what would."""

import re

import pytest
import torch
from small_network import Net

import fastdiff

WRONG = (TypeError, ValueError)


@pytest.mark.parametrize("name", ["emoji-unet-32", "emoji-ldm-64"])
def test_condition(name):
    info = fastdiff.load(name).info
    what = "prompts" if "ldm" in name else "classes"
    cases = [(3, 2, f"{what} must be a name, a list of one a sample, or None, got 3 (int)"),
             ([3, 4], 2, f"{what} must be names or None, got 3 (int)"), (torch.tensor([1, 2]), 2, "must be names"),
             (b"dog", 2, f"{what} must be"), (None, "2", "batch must be a whole number"), (None, True, "batch must be"),
             (None, 0, "batch must be"), ([None], 2, f"{what} must be one, or one a sample (2), got 1")]  # fmt: skip
    for classes, batch, message in cases:
        with pytest.raises(WRONG, match=re.escape(message)):
            info.condition(classes, batch)


def test_loading(tmp_path):
    for name in (str(tmp_path), "/a/path", "folder/model.safetensors", tmp_path, 3):
        with pytest.raises(WRONG, match=r"fastdiff.models.load reads a checkpoint or a folder"):
            fastdiff.load(name)
    with pytest.raises(ValueError, match="did you mean 'emoji-unet-32'"):
        fastdiff.load("emoji-unet")
    with pytest.raises(fastdiff.WeightsError, match=r"No such file or folder; fastdiff.load\(name\) gives a bundled"):
        fastdiff.models.load("emoji-unet-32")
    with pytest.raises(TypeError, match="source must be a path or a state dict, got 3"):
        fastdiff.models.load(3)
    with pytest.raises(fastdiff.WeightsError, match=r"cannot read .*config\.json.* holds nothing") as caught:
        fastdiff.models.load(tmp_path)
    assert str(caught.value).count(str(tmp_path)) == 1
    (tmp_path / "notes.txt").touch()
    with pytest.raises(fastdiff.WeightsError, match=r"the folder holds notes.txt"):
        fastdiff.models.load(tmp_path)


def test_a_pickle_with_code_is_refused_without_advice_to_run_it(tmp_path):
    torch.save({"model": Net(), "run": print}, tmp_path / "all.pt")
    with pytest.raises(fastdiff.WeightsError, match="no code from a checkpoint is run") as caught:
        fastdiff.models.load(tmp_path / "all.pt")
    assert "weights_only" not in str(caught.value)
    assert "small_network.Net" in str(caught.value)
