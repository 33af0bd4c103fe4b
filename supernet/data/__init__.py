"""Datasets: splits, augmentation, and batches for training, calibration and evaluation."""

from supernet.data.augment import Augment
from supernet.data.base import Batch, Data, DataInfo, resize
from supernet.data.memory import MemoryData
from supernet.data.mix import Mix

__all__ = ["Augment", "Batch", "Data", "DataInfo", "MemoryData", "Mix", "resize"]
