"""Every image once an epoch, in a new order each time."""

from __future__ import annotations

from supernet.data.base import epoch_order
from supernet.data_samplers.base import Visits
from supernet.horizon import Horizon


class Shuffle:
    """Uniform sampling without replacement."""

    def __init__(self, num_images: int, seed: int, horizon: Horizon) -> None:
        self.num_images, self.seed = num_images, seed

    def visits(self, epoch: int) -> Visits:
        return Visits(epoch_order(self.num_images, self.seed, epoch))
