"""Train a supernet: `python train.py`, `python train.py --help`."""

from supernet.cli import entry

if __name__ == "__main__":
    entry("train", "supernet.job:main")
