"""Shards, archives and data sets of Hugging Face's as timm's readers read them."""

import io
import json
import pickle
import tarfile
from contextlib import nullcontext

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from efficient_vits.training import DataError, Options, evaluate_source, load_data
from efficient_vits.training.evaluation import evaluate_model
from efficient_vits.training.loaders import evaluation_loader, training_loader

# timm and webdataset leave it to the garbage collector to close files.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

TRAIN, TEST = (12, 12, 12, 12), (7, 6, 5)  # images of each shard
CLASSES = ("a", "b", "c")


def image(number):
    """An image of one grey, so that no crop or flip hides which one it is."""
    return Image.new("RGB", (24, 20), (5 * number,) * 3)


def png(number):
    file = io.BytesIO()
    image(number).save(file, "PNG")
    return file.getvalue()


def write_tar(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def write_shards(folder, train=TRAIN, test=TEST):
    """Shards of numbered images, whose labels are their numbers' remainders by three."""
    splits = {}
    for split, lengths in (("train", train), ("validation", test)):
        names = [f"{split}-{index:04d}.tar" for index in range(len(lengths))]
        first = 0
        for name, length in zip(names, lengths, strict=True):
            files = {}
            for number in range(first, first + length):
                files[f"{number:06d}.png"] = png(number)
                files[f"{number:06d}.cls"] = str(number % 3).encode()
            write_tar(folder / name, files)
            first += length
        splits[split] = {
            "name": split,
            "num_samples": sum(lengths),
            "filenames": names,
            "shard_lengths": lengths,
        }
    (folder / "_info.json").write_text(json.dumps({"splits": splits}))
    return f"wds/grey:{folder}"


def numbers(loader, recipe):
    """Which images a loader gives, by their greys."""
    greys = [grey for images, _ in loader for grey in images[:, 0].mean((1, 2)).tolist()]
    return [round((grey * recipe.std[0] + recipe.mean[0]) * 255 / 5) for grey in greys]


@pytest.fixture
def share(recipe):
    """The numbers of the images that one process gets."""
    plain = recipe.with_changes(three_augment=(), color_jitter=0.0)
    common = {"batch_size": 16, "device": torch.device("cpu")}

    def share(data, *, train, rank=0, processes=1, workers=0, epochs=1):
        given = {**common, "rank": rank, "processes": processes, "workers": workers}
        if not train:
            return numbers(evaluation_loader(data.test, plain, **given), plain)
        loader = training_loader(data.train, plain, seed=0, **given)
        seen = []
        for epoch in range(epochs):
            loader.dataset.set_epoch(epoch)
            seen.append(numbers(loader, plain))
        return seen

    return share


def test_shards_are_learnt_from_and_all_tested_on(tmp_path, run):
    source = write_shards(tmp_path / "shards")
    with pytest.raises(
        DataError, match=r"how many classes it has: give their number .*--num-classes"
    ):
        load_data(source)
    data = load_data(source, num_classes=3)
    for workers in (0, 2):
        output, updates = f"run{workers}", []
        options = Options(workers=workers)
        result = run(output, data=data, options=options, on_update=updates.append)
        # As many updates as of any data, however many workers share the shards.
        assert [(u.epoch, u.index) for u in updates] == [(e, i) for e in (0, 1) for i in range(3)]
        accuracy = evaluate_source(tmp_path / output, data, cpu=True, workers=2 - workers)
        assert accuracy.images == 18
        assert accuracy.top1 == pytest.approx(result["top1"])
    assert (result["data"], result["num_classes"]) == ("wds/grey", 3)


@pytest.mark.parametrize("workers", [0, 2])
def test_every_image_of_the_shards_is_seen(workers, tmp_path, share):
    # Of four shards, each worker has as many batches.
    data = load_data(write_shards(tmp_path, train=(8, 8, 8, 8)), num_classes=3)
    # Looking at the data leaves nothing behind for the workers.
    assert (len(list(data.train)), len(list(data.test))) == (32, 18)
    first, second = share(data, train=True, workers=workers, epochs=2)
    assert sorted(first) == sorted(second) == list(range(32))
    assert first != second
    assert sorted(share(data, train=False, workers=workers)) == list(range(18))


def test_processes_share_the_shards(tmp_path, share):
    """Although the data is loaded before the processes know of each other."""
    data = load_data(write_shards(tmp_path, train=(8, 8, 8, 8)), num_classes=3)
    for train, count in ((True, 32), (False, 18)):
        parts = [share(data, train=train, rank=rank, processes=2) for rank in (0, 1)]
        one, two = (part[0] if train else part for part in parts)
        assert sorted(one + two) == list(range(count))
    alone = [share(data, train=False, rank=rank, processes=4) for rank in range(4)]
    assert [len(part) for part in alone] == [7, 6, 5, 0]


class OneOfTwo:
    """The processes, as seen by one that has no images, while the other has two."""

    device = torch.device("cpu")

    def autocast(self):
        return nullcontext()

    def reduce(self, sums, *, reduction):
        assert reduction == "sum"
        others = torch.tensor([1, 2, 3.0, 2, 2], dtype=sums.dtype)
        return sums + others


def test_a_process_without_test_images():
    accuracy = evaluate_model(torch.nn.Flatten(), [], OneOfTwo())
    assert (accuracy.top1, accuracy.top5, accuracy.loss, accuracy.images) == (50, 100, 1.5, 2)


def test_shards_are_taken_up_at_the_next_epoch(tmp_path, run):
    source = write_shards(tmp_path / "shards")

    def interrupt(update):
        if update.epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(data=load_data(source, num_classes=3), on_update=interrupt)
    again, updates = load_data(source, num_classes=3), []
    run(data=again, resume=True, on_update=updates.append)
    assert [(u.epoch, u.index) for u in updates] == [(1, 0), (1, 1), (1, 2)]
    assert again.train.reader.epoch_count.value == 1
    with pytest.raises(DataError, match="leave out save_every"):
        run("other", data=again, options=Options(save_every=1))


def test_test_images_that_are_missing(tmp_path, run):
    source = write_shards(tmp_path / "shards")
    run(data=load_data(source, num_classes=3))
    write_tar(tmp_path / "shards" / "validation-0001.tar", {"7.png": b"no image", "7.cls": b"1"})
    with pytest.raises(DataError, match="only 12 of 18 test images"):
        evaluate_source(tmp_path / "run", load_data(source, num_classes=3), cpu=True)


def test_shards_that_do_not_suit(tmp_path, run):
    data = load_data(write_shards(tmp_path / "shards"), num_classes=3)
    with pytest.raises(DataError, match=r"4 shards can't be shared by 5 readers \(1 processes x 5"):
        run(data=data, options=Options(workers=5))
    data = load_data(write_shards(tmp_path / "shards"), num_classes=2)
    with pytest.raises(DataError, match="'train' has label 2; with 2 classes, labels are 0 to 1"):
        run(data=data)
    with pytest.raises(DataError, match="can't read split 'test' of wds/grey: RuntimeError"):
        load_data(f"wds/grey:{tmp_path / 'shards'}", test_split="test", num_classes=3)


def write_archives(folder, train=CLASSES, test=CLASSES):
    """An archive per split of a folder per class; names are the same in both."""
    for split, classes, count in (("train", train, 8), ("validation", test, 2)):
        files = {}
        for name in classes:
            for k in range(count):
                files[f"{name}/{k}.png"] = png(3 * k + "abcd".index(name))
        write_tar(folder / f"{split}.tar", files)
    return str(folder), {"train_split": "train.tar", "test_split": "validation.tar"}


def test_archives_of_folders(tmp_path, run, recipe):
    source, splits = write_archives(tmp_path / "grey")
    data = load_data(source, **splits)
    assert (len(data.train), len(data.test), data.num_classes, data.name) == (24, 6, 3, "grey")
    for workers in (0, 2):
        small = recipe.with_changes(batch_size=8)
        result = run(f"run{workers}", data=data, recipe=small, options=Options(workers=workers))
        assert result["data"] == "grey"
    accuracy = evaluate_source(tmp_path / "run0", data, cpu=True)
    assert accuracy.images == 6


def test_an_archive_that_was_read_before_its_workers_began(tmp_path, share):
    """If it stayed open, forked workers would share one position, and spawned ones get no copy."""
    write_archives(tmp_path)
    files = {f"{'abc'[k % 3]}/{k}.png": png(k % 50) for k in range(300)}
    write_tar(tmp_path / "many.tar", files)
    data = load_data(str(tmp_path), train_split="train.tar", test_split="many.tar")
    assert data.test[0][1] == 0
    assert sorted(share(data, train=False, workers=2)) == sorted([*range(50)] * 6)
    assert pickle.loads(pickle.dumps(data.test))[1][1] == 0


def test_archives_that_are_no_two_parts(tmp_path):
    source, splits = write_archives(tmp_path / "less", test=("b", "c"))
    data = load_data(source, **splits)
    assert data.num_classes == 3
    greys = [(int(np.asarray(grey)[0, 0, 0]) // 5, target) for grey, target in data.test]
    assert [target for _, target in greys] == [number % 3 for number, _ in greys] == [1, 1, 2, 2]
    source, splits = write_archives(tmp_path / "more", test=("a", "d"))
    with pytest.raises(DataError, match=r"classes of its own: \['d'\]"):
        load_data(source, **splits)
    with pytest.raises(DataError, match="24 images in common: each needs a folder or an archive"):
        load_data(str(tmp_path / "more" / "train.tar"))


@pytest.fixture
def parquet(tmp_path, monkeypatch):
    """Writes the two parts of a data set as Hugging Face's package does, images within."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)

    def write(labels=None):
        label = labels or datasets.ClassLabel(names=list(CLASSES))
        features = datasets.Features({"image": datasets.Image(), "label": label})
        folder = tmp_path / "parquet"
        folder.mkdir()
        for split, count in (("train", 48), ("validation", 18)):
            rows = {
                "image": [image(number) for number in range(count)],
                "label": [number % 3 for number in range(count)],
            }
            part = datasets.Dataset.from_dict(rows, features=features)
            part.to_parquet(folder / f"{split}.parquet")
        return f"{folder}:{tmp_path / 'cache'}"

    return write


def test_hugging_face(tmp_path, run, parquet, share):
    source = parquet()
    data = load_data(f"hfds/{source}")
    assert (len(data.train), len(data.test), data.num_classes) == (48, 18, 3)
    assert sorted(share(data, train=False, workers=2)) == list(range(18))
    run(data=data, options=Options(workers=2))
    assert evaluate_source(tmp_path / "run", data, cpu=True).images == 18

    streamed = load_data(f"hfids/{source}")  # knows its length from what was just prepared
    first, second = share(streamed, train=True, epochs=2)
    assert sorted(first) == sorted(second) == list(range(48))
    assert first != second
    run("streamed", data=streamed)
    assert evaluate_source(tmp_path / "streamed", streamed, cpu=True).images == 18


def test_hugging_face_without_names_of_classes(tmp_path, parquet, share):
    source = f"hfds/{parquet(datasets.Value('int64'))}"
    with pytest.raises(DataError, match="how many classes it has: give their number"):
        load_data(source)
    assert load_data(source, num_classes=3).num_classes == 3
    with pytest.raises(DataError, match="'validation' has label 2; with 2 classes"):
        share(load_data(source, num_classes=2), train=False)
