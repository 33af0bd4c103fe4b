"""Train a supernet: `python train.py`, `python train.py --help`."""

from supernet.begin import begin

if __name__ == "__main__":
    begin("train", "supernet.job:main")
