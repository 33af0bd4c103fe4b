"""What can happen to a file: it is cut, bits flip, parts become zeros or repeat, or it is another file altogether."""

from __future__ import annotations

import copy
import gzip
import io
import pickle
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from PIL import Image

Bytes = Callable[[bytes], bytes]
# What is seldom meant, in the place of anything.
ODD: tuple[Any, ...] = (None, True, -1, 0, 3, 1.5, 2**70, float("nan"), float("inf"), "", "x", [], [1], [None], {})
ODD += ({"a": 1}, [[1]], {"_target_": "os.system"}, {"_target_": 3}, "9" * 500, [0] * 50, "../../x", "\u0000\n")


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every entry of nested mappings and lists."""
    entries = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in entries:
        yield (*path, key)
        yield from places(value, (*path, key))


def replaced(node: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with another entry at the end of that way."""
    changed = copy.deepcopy(node)
    target = changed
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = value
    return changed


class Payload:
    """A pickled one makes a file when it is read by anything that runs what pickles ask for."""

    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.touched,))


@dataclass(frozen=True)
class Damage:
    """One change of a file; `at` and `size` are shares of its length, `name` says what the content is."""

    kind: str
    at: float = 0.0
    size: float = 0.0
    content: bytes = field(default=b"", repr=False)
    name: str = ""

    def __call__(self, data: bytes) -> bytes:
        start = int(self.at * len(data))
        stop = min(len(data), start + max(1, int(self.size * len(data))))
        if self.kind == "cut":
            return data[:start]
        if self.kind == "flip":
            bit = 1 << int(self.size * 7.99)
            return data[:start] + bytes(byte ^ bit for byte in data[start : start + 1]) + data[start + 1 :]
        if self.kind == "zero":
            return data[:start] + bytes(stop - start) + data[stop:]
        if self.kind == "insert":
            return data[:start] + self.content + data[start:]
        if self.kind == "drop":
            return data[:start] + data[stop:]
        if self.kind == "repeat":
            return data[:stop] + data[start:]
        assert self.kind == "replace"
        return self.content


def foreign_files(touched: Path) -> dict[str, bytes]:
    """Files of other kinds; those that could run code would make the file `touched`."""
    archive, image = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Payload(touched)))
        file.writestr("archive/version", "3")
    Image.new("RGB", (4, 4)).save(image, "PNG")
    return {
        "nothing": b"",
        "zeros": bytes(1000),
        "noise": bytes(i * i % 251 for i in range(1000)),
        "page": b"<html><head><title>404</title></head></html>\n",
        "text": "größe: ½ — \u2603\n".encode("utf-16"),
        "null": b"null\n",
        "list": b"[]\n",
        "mapping": b"{}\n",
        "number": b"3\n",
        "word": b'"x"\n',
        "nan": b'{"resolution": NaN, "rows": [NaN], "format": Infinity, "width": 1e999}\n',
        "long number": b'{"resolution": ' + b"9" * 5000 + b', "version": 1e999}\n',
        "deep lists": b"[" * 100_000 + b"]" * 100_000,
        "deep mappings": b'{"space":' * 50_000 + b"1" + b"}" * 50_000,
        "rows of nothing": b'{"rows": [1, null, {}, {"arch": 3}], "format": "supernet-subnet", "version": 1}\n',
        "yaml call": f"!!python/object/apply:pathlib.Path.touch ['{touched}']\n".encode(),
        "pickle": pickle.dumps(Payload(touched)),
        "old pickle": pickle.dumps(Payload(touched), protocol=2),
        "zip": archive.getvalue(),
        "gzip": gzip.compress(b"x" * 1000),
        "image": image.getvalue(),
    }


def damages(touched: Path) -> Any:
    """One change of a file, any of the kinds above."""
    share = st.floats(0, 1, exclude_max=True)
    small = st.floats(0, 0.2)
    return st.one_of(
        st.builds(Damage, st.just("cut"), share),
        st.builds(Damage, st.just("flip"), share, share),
        st.builds(Damage, st.sampled_from(("zero", "drop", "repeat")), share, small),
        st.builds(Damage, st.just("insert"), share, st.just(0.0), st.binary(min_size=1, max_size=20)),
        st.sampled_from([Damage("replace", content=data, name=name) for name, data in foreign_files(touched).items()]),
    )
