"""Search a trained supernet: `python search.py`, `python search.py --help`."""

from supernet.cli import entry

if __name__ == "__main__":
    entry("search", "search.runner:main")
