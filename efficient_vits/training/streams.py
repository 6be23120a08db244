"""What timm's streamed data sets are told about the batches and the processes of a run."""

from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from typing import Any

from timm.data import IterableImageDataset
from timm.data.readers.reader_wds import ReaderWds

from efficient_vits.training.data import DataError


def stream_share(dataset: Any, *, batch_size: int, rank: int, processes: int, workers: int) -> Any:
    """A copy of a stream that reads this process' share of it; any but timm's is left as it is.

    timm's readers ask torch for their share when they are made, which may be before the processes
    have met; and they give every worker whole batches only if they know how large these are.

    Args:
        dataset: As in `Data`, an `IterableDataset`.
        batch_size: Images of one batch of this process.
        rank: Number of this process of `processes`.
        processes: How many there are.
        workers: Processes that load images, for each of them.

    Raises:
        DataError: There are fewer training shards than workers.
    """
    if not isinstance(dataset, IterableImageDataset):
        return dataset
    dataset = copy(dataset)
    reader = dataset.reader = copy(dataset.reader)
    reader.ds = reader.worker_info = None  # made anew for these workers
    reader.batch_size = batch_size
    if isinstance(reader, ReaderWds):
        shards = reader.split_info.filenames
        readers = processes * max(workers, 1)
        if reader.is_training and len(shards) < readers:
            raise DataError(
                f"{len(shards)} shards can't be shared by {readers} readers ({processes} processes "
                f"x {max(workers, 1)} workers): each needs one"
            )
        if not reader.is_training:
            # timm would read equally many images in each process, some twice or not at all.
            own = shards[rank::processes]
            if not own:
                dataset.reader = NoShards(reader.num_samples)
                return dataset
            reader.split_info = replace(reader.split_info, filenames=own)
            rank, processes = 0, 1
    reader.dist_rank, reader.dist_num_replicas = rank, processes
    return dataset


class NoShards:
    """The reader of a process that is left without test shards."""

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples  # of all processes

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __len__(self) -> int:
        return 0


def stream_size(dataset: Any) -> int | None:
    """Images of a stream of timm's in all processes together; None if it doesn't say."""
    if not isinstance(dataset, IterableImageDataset):
        return None
    return dataset.reader.num_samples or None
