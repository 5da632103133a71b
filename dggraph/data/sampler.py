"""The order of samples and their random numbers, as functions of a seed, without stored state.

A run that stops after any step and resumes there sees the same samples, augmented in the same way,
with any number of loader workers or processes. The order is a permutation from f(seed, epoch). For
augmentation, torch's generator is seeded with f(seed, epoch, index) around each sample. Torch's own
samplers draw from a generator whose state depends on what was read ahead.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler

Place = tuple[int, int]
"""(epoch, index) of a sample."""


def seed_of(*parts: int) -> int:
    """Return a seed of 63 bits, which practically no other `parts` share."""
    text = ",".join(str(int(part)) for part in parts).encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little") >> 1


def permutation(num_samples: int, seed: int, epoch: int) -> torch.Tensor:
    """Return the order of samples in `epoch`, (num_samples,) int64."""
    return torch.randperm(
        num_samples, generator=torch.Generator().manual_seed(seed_of(seed, epoch))
    )


class EpochBatches(Sampler[list[Place]]):
    """The batches of one process in one epoch.

    Samples at the end that do not fill a global batch are left to other epochs, which have other
    orders.

    Args:
        groups: the group of each sample; a global batch has samples of one group, for example
            images that are all wide.
        batch_size: batch size of one process. A global batch is `batch_size * world_size`
            neighbours in the epoch's order of their group, so one process with that batch size sees
            the same global batches.
        seed: seed of the run.
        epoch: number of the epoch, from 0.
        rank: rank of this process.
        world_size: number of processes.
        first: number of global batches of this epoch that are done already.
        most: number of global batches after which the epoch ends, if there are so many.
    """

    def __init__(
        self,
        groups: Sequence[int],
        batch_size: int,
        *,
        seed: int,
        epoch: int,
        rank: int = 0,
        world_size: int = 1,
        first: int = 0,
        most: int | None = None,
    ) -> None:
        """Store the arguments; the order is drawn in each iteration."""
        self.most = most
        self.groups, self.seed, self.epoch, self.first = groups, seed, epoch, first
        self.mine, self.global_size = (
            slice(rank * batch_size, (rank + 1) * batch_size),
            batch_size * world_size,
        )

    def __len__(self) -> int:
        complete = sum(count // self.global_size for count in Counter(self.groups).values())
        return (complete if self.most is None else min(complete, self.most)) - self.first

    def __iter__(self) -> Iterator[list[Place]]:
        waiting: dict[int, list[int]] = {group: [] for group in self.groups}
        number = 0
        for index in permutation(len(self.groups), self.seed, self.epoch).tolist():
            batch = waiting[self.groups[index]]
            batch.append(index)
            if number == self.most:
                return
            if len(batch) == self.global_size:
                if number >= self.first:
                    yield [(self.epoch, index) for index in batch[self.mine]]
                number += 1
                batch.clear()


class SeededDataset(Dataset[Any]):
    """Wraps `dataset` so that item (epoch, index) is drawn with its own seed.

    The state of torch's generator is restored after each sample. Samples that draw from `random` or
    numpy are not reproduced.
    """

    def __init__(self, dataset: Dataset[Any], seed: int) -> None:
        """Wrap `dataset`; `seed` is the seed of the run."""
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, place: Place) -> Any:
        epoch, index = place
        before = torch.random.get_rng_state()
        # torch.manual_seed would reseed GPUs too
        torch.default_generator.manual_seed(seed_of(self.seed, epoch, index))
        try:
            return self.dataset[index]
        finally:
            torch.random.set_rng_state(before)
