"""Search a trained supernet: `python search.py`, `python search.py --help`."""

from supernet.begin import begin

if __name__ == "__main__":
    begin("search", "search.runner:main")
