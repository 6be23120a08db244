import numpy as np
import pytest
import torch
from PIL import Image

from efficient_vits.training import Data, DataError, Options, load_data

# timm leaves it to the garbage collector to close the files of images.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


def write(folder, *, train=("a", "b", "c"), test=("a", "b", "c"), images=8):
    """PNGs of one colour per class, in a folder per split and class."""
    generator = np.random.default_rng(0)
    for split, classes in (("train", train), ("validation", test)):
        for name in classes:
            (folder / split / name).mkdir(parents=True)
            for number in range(images if split == "train" else 2):
                pixels = generator.integers(0, 60, (20, 24, 3), np.uint8)
                pixels[..., "abcd".index(name) % 3] += 150
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


def brightest(data):
    """Which channel is the brightest, and the label, of every image."""
    return [(int(np.asarray(image).mean((0, 1)).argmax()), target) for image, target in data]


def test_a_folder(tmp_path, run, recipe):
    data = load_data(str(write(tmp_path / "colours")))
    assert (len(data.train), len(data.test), data.num_classes) == (24, 6, 3)
    assert data.name == "colours"
    for part in (data.train, data.test):
        assert all(channel == target for channel, target in brightest(part))
    result = run(data=data, recipe=recipe.with_changes(batch_size=8))
    assert result["data"] == "colours"
    assert 0 <= result["top1"] <= 100


def test_a_class_that_the_tests_lack_leaves_the_others_numbers(tmp_path):
    data = load_data(str(write(tmp_path, test=("b", "c"))))
    assert data.num_classes == 3
    assert {target for _, target in brightest(data.test)} == {1, 2}
    assert all(channel == target for channel, target in brightest(data.test))


def test_folders_that_are_no_two_parts(tmp_path):
    write(tmp_path / "more", test=("a", "d"))
    with pytest.raises(DataError, match=r"classes of its own: \['d'\]"):
        load_data(str(tmp_path / "more"))
    write(tmp_path / "one")
    (tmp_path / "one" / "validation").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"'train' and 'validation' of .* have 24 images in common"):
        load_data(str(tmp_path / "one"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="can't read split 'train'"):
        load_data(str(tmp_path / "empty"))


def spoil(file, bytes_left):
    file.write_bytes(file.read_bytes()[:bytes_left])


@pytest.mark.parametrize("bytes_left", [0, 200])
def test_a_broken_image_is_an_error_in_tests_only(bytes_left, tmp_path, run, recipe, caplog):
    data = load_data(str(write(tmp_path / "data")))
    small = recipe.with_changes(batch_size=8)
    spoil(tmp_path / "data" / "train" / "b" / "3.png", bytes_left)
    run("good", data=data, recipe=small)
    assert "Skipped sample" in caplog.text
    spoil(tmp_path / "data" / "validation" / "b" / "1.png", bytes_left)
    with pytest.raises(DataError, match=r"can't read the image .*1\.png"):
        run("bad", data=data, recipe=small)


class Stream(torch.utils.data.IterableDataset):
    """Images that come one after another, in an order that the epoch changes."""

    def __init__(self, whole, count, says=None):
        self.whole, self.count, self.says = whole, count, says or count
        self.epoch, self.transform, self.epochs = 0, None, []

    def __len__(self):
        return self.says

    def set_epoch(self, epoch):
        self.epoch = epoch
        self.epochs.append(epoch)

    def __iter__(self):
        for number in range(self.count):
            image, target = self.whole[(number + self.epoch) % self.count]
            yield self.transform(image), target


def test_a_stream(run, few_digits):
    train, test = Stream(few_digits.train, 48), Stream(few_digits.test, 20)
    updates = []
    result = run(data=Data(train, test, 10, "stream"), on_update=updates.append)
    assert [(u.epoch, u.index) for u in updates] == [(e, i) for e in (0, 1) for i in range(3)]
    assert train.epochs == [0, 1]
    assert result["data"] == "stream"


def test_a_stream_is_taken_up_at_the_next_epoch(run, few_digits):
    def data():
        return Data(Stream(few_digits.train, 48), few_digits.test, 10, "stream")

    def interrupt(update):
        if update.epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(data=data(), on_update=interrupt)
    again = data()
    run(data=again, resume=True)
    assert again.train.epochs == [1]
    with pytest.raises(ValueError, match="leave out save_every"):
        run("other", data=data(), options=Options(save_every=1))


def test_a_stream_that_ends_early(run, few_digits):
    data = Data(Stream(few_digits.train, 20, says=48), few_digits.test, 10, "stream")
    with pytest.raises(DataError, match="ended in update 1 of epoch 0; by its length there are 3"):
        run(data=data)
