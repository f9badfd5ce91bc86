"""Sums over the images of an epoch, as Keras's metrics keep them."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from kerasnorm.inspection.evaluation import Scores


class RunningMeans(Mapping[str, float]):
    """The `logs` of a batch: means over the epoch's images so far, read when they are looked at.

    Reading waits for an accelerator; who does not look does not wait.

    Args:
        read: Returns the sums of loss, cross-entropy and right answers.
        count: Images so far.
    """

    NAMES = ("loss", "entropy", "accuracy")

    def __init__(self, read: Callable[[], Sequence[float]], count: int) -> None:
        self.read = read
        self.count = count

    def __getitem__(self, name: str) -> float:
        if name not in self.NAMES:
            raise KeyError(name)
        return self.read()[self.NAMES.index(name)] / self.count

    def __iter__(self) -> Iterator[str]:
        return iter(self.NAMES)

    def __len__(self) -> int:
        return len(self.NAMES)

    def scores(self) -> Scores:
        """Cross-entropy and accuracy so far."""
        _, entropy, right = self.read()
        return Scores(entropy / self.count, right / self.count)
