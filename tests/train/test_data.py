"""Data of a run: batches by number, whatever they come from, and folders of pictures."""

import numpy as np
import pytest
import torch
from PIL import Image

from fastdiff.train.data import Samples, Stream, get_data
from fastdiff.train.pictures import Pictures


def test_every_sample_is_drawn_once_an_epoch_and_batches_do_not_depend_on_the_order():
    data = get_data(torch.arange(10.0)[:, None], seed=3)
    drawn = torch.cat([data.batch(k, 4)[0] for k in range(5)]).flatten()
    assert sorted(drawn[:10].tolist()) == sorted(drawn[10:].tolist()) == list(range(10))
    assert drawn[:10].tolist() != drawn[10:].tolist()
    again = get_data(torch.arange(10.0)[:, None], seed=3)
    for k in (4, 0, 2):
        assert torch.equal(again.batch(k, 4)[0].flatten(), drawn[4 * k : 4 * k + 4])
    assert not torch.equal(get_data(torch.arange(10.0)[:, None], seed=4).batch(0, 10)[0].flatten(), drawn[:10])


def test_what_is_held_out_is_not_drawn():
    data = Samples(torch.arange(60.0)[:, None])
    rest, held = data.parted(25)
    assert held.example(9)[0].flatten().tolist() == [24, 49]
    assert sorted(rest.batch(0, 58)[0].flatten().tolist()) == [k for k in range(60) if k not in (24, 49)]
    assert rest.fingerprint != data.fingerprint


def test_items_of_a_dataset_are_collated_with_their_conditions():
    items = [(np.full((1, 2, 2), k / 8, np.float32), k) for k in range(4)]
    x0, cond = get_data(items).batch(0, 3)
    assert x0.shape == (3, 1, 2, 2)
    assert cond["y"].dtype == torch.int64
    assert torch.equal(x0[:, 0, 0, 0] * 8, cond["y"].float())
    named = [(torch.zeros(2), {"context": torch.ones(3), "y": 1})] * 4
    assert {name: value.shape for name, value in get_data(named).batch(0, 2)[1].items()} == {
        "context": (2, 3),
        "y": (2,),
    }


def test_uint8_becomes_values_around_zero():
    x0, _ = get_data(torch.tensor([[[[0, 255]]]], dtype=torch.uint8)).batch(0, 1)
    assert x0.tolist() == [[[[-1.0, 1.0]]]]


class Noisy(torch.utils.data.Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, i):
        return torch.tensor([float(i)]) + torch.rand(1)


def test_a_loader_gives_the_same_batches_to_a_run_that_goes_on():
    def loader():
        return torch.utils.data.DataLoader(Noisy(), batch_size=4, shuffle=True)

    data = get_data(loader(), seed=1)
    assert isinstance(data, Stream)
    whole = [data.batch(k, 4)[0] for k in range(8)]
    assert sorted(torch.cat(whole[:3]).long().flatten().tolist()) == list(range(12))
    assert not torch.equal(whole[0].long(), whole[3].long())  # shuffled anew
    for begin in (2, 3, 5):
        resumed = get_data(loader(), seed=1)
        for k in range(begin, 8):
            assert torch.equal(resumed.batch(k, 4)[0], whole[k])
    assert torch.equal(data.batch(1, 4)[0], whole[1])  # and back


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (7, "data must be a tensor, a Dataset or an iterable of batches, got 7"),
        ("folder", "data must be a tensor"),
        ([torch.zeros(2, dtype=torch.int64)], "x0 of a batch must be floating point"),
        ([(torch.zeros(2), torch.zeros(2), 1)], "a batch must be x0 or"),
        (torch.zeros(0, 3), "data holds no samples"),
        ((x for x in [torch.zeros(4, 2)]), "data can be gone through only once"),
        (
            torch.utils.data.DataLoader(Noisy(), batch_size=13, drop_last=True),
            "data gave no batch when it was begun anew",
        ),
        (torch.utils.data.DataLoader(Noisy(), batch_size=5), "gave a batch of 5 samples, expected 4: set batch"),
    ],
)
def test_data_that_cannot_be(data, said):
    with pytest.raises((TypeError, ValueError), match=said):
        get_data(data).batch(0, 4)


def save(path, color, size=(9, 12), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "a" / "red.png", "red")
    save(tmp_path / "a" / "deep" / "blue.JPG", "blue")
    save(tmp_path / "b" / "green.webp", (0, 255, 0))
    save(tmp_path / "b" / "clear.png", (0, 0, 0, 0), mode="RGBA")
    (tmp_path / "b" / "notes.txt").write_text("no picture")
    return tmp_path


def test_a_folder_of_pictures(folder):
    pictures = Pictures(folder, 8)
    assert pictures.images.shape == (4, 3, 8, 8)
    assert pictures.images.dtype == torch.uint8
    blue, red, clear, green = pictures.images.float().mean((2, 3))
    assert blue[2] > 250
    assert blue[0] < 5
    assert red.tolist() == [255, 0, 0]
    assert clear.tolist() == [255, 255, 255]  # what is transparent is white
    assert green[1] > 250
    assert pictures.fingerprint == Pictures(folder, 8).fingerprint != Pictures(folder, 9).fingerprint
    (folder / "a" / "red.png").unlink()
    assert len(Pictures(folder, 8)) == 3


def test_folders_as_classes(folder):
    pictures = Pictures(folder, 8, by_folder=True)
    assert pictures.classes == ("a", "b")
    assert pictures.labels.tolist() == [0, 0, 1, 1]
    x0, cond = get_data(pictures).batch(0, 4)
    assert x0.shape == (4, 3, 8, 8)
    assert sorted(cond["y"].tolist()) == [0, 0, 1, 1]
    assert pictures.fingerprint != Pictures(folder, 8).fingerprint
    save(folder / "outside.png", "red")
    with pytest.raises(ValueError, match=r"classes are subfolders, but 1 pictures, such as .*outside\.png"):
        Pictures(folder, 8, by_folder=True)


def test_unreadable_pictures_are_named_or_left_out(folder):
    whole = (folder / "a" / "red.png").read_bytes()
    (folder / "a" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpeg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"2 of 6 pictures in .* cannot be read: .*cut\.png.*empty\.jpeg"):
        Pictures(folder, 8)
    pictures = Pictures(folder, 8, skip_unreadable=True)
    assert [path.name for path in pictures.skipped] == ["cut.png", "empty.jpeg"]
    assert len(pictures) == 4


def test_folders_without_pictures(tmp_path):
    with pytest.raises(ValueError, match="there is no folder of pictures"):
        Pictures(tmp_path / "nowhere", 8)
    with pytest.raises(ValueError, match="holds no pictures that can be read"):
        Pictures(tmp_path, 8)
