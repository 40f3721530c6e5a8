"""Joins several data sets in exact shares."""

import logging
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from torch.utils.data import Dataset

from ...files.user_error import UserError
from .conversation_dataset import ConversationDataset
from .images import ImageDataset


logger = logging.getLogger(__name__)

LARGEST = 2**31  # samples of a source in an epoch
LARGE = 10  # times as many samples in an epoch as there are records


def share_counts(sizes: Sequence[int], weights: Sequence[float] | None) -> list[int]:
    """
    Returns how many samples of an epoch come from each source.

    Without weights every record is used once. With weights the samples are shared among the sources in proportion to
    them, and the epoch is the shortest in which every record of every source is used at least once.

    Raises:
        UserError: The epoch is too long for a sampler.
    """
    if weights is None:
        return list(sizes)
    length = max(size / weight for size, weight in zip(sizes, weights))
    if length * max(weights) > LARGEST:
        raise UserError(
            f"data: with the weights {', '.join(map(str, weights))}, an epoch that uses each record once has more "
            f"than {LARGEST:,} samples: make the smallest weights larger, or leave their sources out."
        )
    return [max(size, round(weight * length)) for size, weight in zip(sizes, weights)]


class MixedDataset(Dataset):
    """
    The samples of several data sets, one after the other; a sampler shuffles them. If a source has more samples than
    records, its records are used several times per epoch; the numbers of uses of two records differ by one at most.

    Args:
        parts (`list[ConversationDataset]` or `list[ImageDataset]`):
            The data sets.
        weights (`list[float]`, *optional*):
            Weight of each data set, see [`share_counts`].
    """

    def __init__(self, parts: Sequence[ConversationDataset | ImageDataset], weights: list[float] | None = None):
        self.parts = parts
        self.counts = share_counts([len(part) for part in parts], weights)
        self._starts = [0, *accumulate(self.counts)]
        num_records = sum(map(len, parts))
        if len(self) > LARGE * num_records:
            uses, name = max((count / len(part), part.data_path) for count, part in zip(self.counts, parts))
            logger.warning(
                "An epoch has %s samples, because it uses each of the %s records at least once in the shares that the "
                "weights set: records of %s are used %s times. Set max_steps, or other weights.",
                *(f"{len(self):,}", f"{num_records:,}", name, f"{uses:,.0f}"),
            )

    @property
    def data_path(self) -> str:
        """The names of all parts, for errors."""
        return ", ".join(part.data_path for part in self.parts)

    @property
    def question(self) -> str:
        """The first question of the first part that has one."""
        return next((part.question for part in self.parts if part.question), "")

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> dict:
        """Returns the sample of a part, as [`RecordDataset`] does; raises as it does."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        part = bisect_right(self._starts, index) - 1
        # Rows are spread evenly over the part's share of the indices.
        row = (index - self._starts[part]) * len(self.parts[part]) // self.counts[part]
        return self.parts[part][row]

    @property
    def bad_records(self) -> str:
        """The option `bad_records`, equal in all parts."""
        return self.parts[0].bad_records

    def lengths(self) -> list[int]:
        """The number of tokens of each sample."""
        return self._spread([part.lengths() for part in self.parts])

    def measure(self) -> tuple[list[int], list[int]]:
        """As [`RecordDataset.measure`]."""
        lengths, num_tiles = zip(*(part.measure() for part in self.parts))
        return self._spread(lengths), self._spread(num_tiles)

    def _spread(self, values: Sequence[list]) -> list:
        """Returns a value for each sample from one for each record of each part."""
        return [
            part[number * len(part) // count] for part, count in zip(values, self.counts) for number in range(count)
        ]
