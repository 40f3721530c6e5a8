"""Batches of one modality and of similar lengths, with a fixed number of samples, or at most of tokens and tiles."""

from collections.abc import Iterator, Sequence

import torch
from transformers.trainer_pt_utils import BatchRebalanceSampler, get_length_grouped_indices

from ...files.user_error import UserError


LENGTH_MULTIPLE = 8  # samples with the same rounded length are shuffled in each epoch


def too_few_samples(num_samples: int, num_processes: int) -> UserError:
    """Returns the error for data without a batch for each process."""
    return UserError(
        f"The {num_samples} samples are too few for a batch in each of {num_processes} processes: set "
        "dataloader_drop_last: false, or use more data."
    )


class GroupedBatchSampler(BatchRebalanceSampler):
    """
    The batches of one process of a run. Samples with and without images are never in one batch. All batches of an
    optimizer step are of one modality as long as there are enough: otherwise a process with only text would wait for
    processes with images. Each sample is in one batch of one process. All processes have the same number of batches in
    every epoch. The order depends only on the seed and the epoch.

    It is a subclass of transformers' batch sampler because the Trainer passes no other one to the data loader.

    Args:
        lengths (`Sequence[int]`):
            Number of tokens of each sample.
        num_tiles (`Sequence[int]`):
            Number of squares of each sample's images; zero without images.
        batch_size (`int`):
            Number of samples in a batch, if there is no `max_batch_tokens`; with `max_batch_tiles`, the maximum.
        max_batch_tokens (`int`, *optional*):
            Maximum number of tokens of a batch, including padding.
        max_batch_tiles (`int`, *optional*):
            Maximum number of tiles of a batch.
        num_processes (`int`), process_index (`int`):
            Number of processes and the index of this one.
        accumulation (`int`, *optional*, defaults to 1):
            Batches of a process in an optimizer step.
        seed (`int`, *optional*, defaults to 0):
            Seed of the order.
        drop_last (`bool`, *optional*, defaults to `False`):
            Whether to leave out the samples that do not fill a batch in each process, instead of making smaller ones.
        indices (`Sequence[int]`, *optional*):
            The samples to use; all if not given.

    Raises:
        UserError: a sample alone has more tokens than `max_batch_tokens` or more tiles than `max_batch_tiles`, or
            there is no batch for each process.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        num_tiles: Sequence[int],
        batch_size: int,
        max_batch_tokens: int | None = None,
        max_batch_tiles: int | None = None,
        num_processes: int = 1,
        process_index: int = 0,
        accumulation: int = 1,
        seed: int = 0,
        drop_last: bool = False,
        indices: Sequence[int] | None = None,
    ):
        # The base's `__init__` is not called, because it makes other batches. There is no attribute `batch_size`: with
        # it, accelerate would drop all batches of another size.
        self.lengths, self.num_tiles, self.samples_per_batch = lengths, num_tiles, batch_size
        self.max_batch_tokens, self.max_batch_tiles = max_batch_tokens, max_batch_tiles
        self.num_processes, self.process_index, self.accumulation = num_processes, process_index, accumulation
        self.seed, self.drop_last, self.epoch = seed, drop_last, 0
        indices = range(len(lengths)) if indices is None else indices
        with_images = [index for index in indices if num_tiles[index]]
        self.modalities = [with_images, [index for index in indices if not num_tiles[index]]]
        for unit, limit, sizes in (("tokens", max_batch_tokens, lengths), ("tiles", max_batch_tiles, num_tiles)):
            largest = max((sizes[index] for index in indices), default=0)
            if limit is not None and largest > limit:
                raise UserError(
                    f"max_batch_{unit} is {limit}, but a sample has {largest} {unit}: make it {largest} or more."
                )
        self.num_batches = len(self._make_batches())
        if not self.num_batches:
            raise too_few_samples(len(indices), num_processes)

    def __len__(self) -> int:
        return self.num_batches // self.num_processes

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._make_batches()[self.process_index :: self.num_processes])

    def _make_batches(self) -> list[list[int]]:
        """Returns the batches of all processes: those of one micro-batch follow each other."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        fill = self._fill_with_samples if self.max_batch_tokens is self.max_batch_tiles is None else self._fill_up
        modalities = [list(fill(indices, generator)) for indices in self.modalities if indices]
        modalities = [batches for batches in modalities if batches]
        num_batches = sum(map(len, modalities))
        if not self.drop_last:
            self._split(modalities, -num_batches % self.num_processes)
        steps, rest = [], []
        size = self.num_processes * self.accumulation
        for batches in modalities:
            order = torch.randperm(len(batches), generator=generator).tolist()
            groups = [
                [batches[index] for index in order[start : start + size]] for start in range(0, len(order), size)
            ]
            rest += groups.pop() if len(groups[-1]) < size else []
            steps += groups
        order = torch.randperm(len(steps), generator=generator).tolist()
        batches = [batch for index in order for batch in steps[index]] + rest
        missing = -len(batches) % self.num_processes
        if self.drop_last:
            return batches[: len(batches) - len(batches) % self.num_processes]
        return batches + (batches * missing)[:missing]  # no batch could be halved

    def _fill_with_samples(self, indices: list[int], generator: torch.Generator) -> Iterator[list[int]]:
        lengths = [self.lengths[index] for index in indices]
        grouped = get_length_grouped_indices(lengths, self.samples_per_batch * self.num_processes, generator=generator)
        for start in range(0, len(grouped), self.samples_per_batch):
            batch = [indices[number] for number in grouped[start : start + self.samples_per_batch]]
            if len(batch) == self.samples_per_batch or not self.drop_last:
                yield batch

    def _fill_up(self, indices: list[int], generator: torch.Generator) -> Iterator[list[int]]:
        """Fills each batch up to the bounds on tokens, or samples, and tiles."""
        # Sorted by rounded lengths and tiles, so that the number of batches is the same in every epoch.
        order = torch.randperm(len(indices), generator=generator).tolist()
        shuffled = [(indices[number], -(-self.lengths[indices[number]] // LENGTH_MULTIPLE)) for number in order]
        batch, size, num_tiles = [], 0, 0
        for index, length in sorted(shuffled, key=lambda item: (-item[1], -self.num_tiles[item[0]])):
            num_tiles += self.num_tiles[index]
            has_too_many = self.max_batch_tiles is not None and num_tiles > self.max_batch_tiles
            if len(batch) == size or has_too_many:
                if batch:
                    yield batch
                batch, size, num_tiles = [], self._most_samples(length * LENGTH_MULTIPLE), self.num_tiles[index]
            batch.append(index)
        yield batch

    def _most_samples(self, length: int) -> int:
        """Number of samples of at most this length in a batch."""
        if self.max_batch_tokens is None:
            return self.samples_per_batch
        return max(1, self.max_batch_tokens // max(1, length))

    @staticmethod
    def _split(modalities: list[list[list[int]]], times: int) -> None:
        """Halves the largest batch several times, so that all processes get equally many batches."""
        for _ in range(times):
            batches = max(modalities, key=lambda batches: max(map(len, batches)))
            largest = max(range(len(batches)), key=lambda number: len(batches[number]))
            middle = len(batches[largest]) // 2
            if middle:
                batches[largest : largest + 1] = [batches[largest][:middle], batches[largest][middle:]]
