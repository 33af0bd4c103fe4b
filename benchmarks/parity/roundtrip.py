"""From a file as the original codes write it, through `search.py checkpoint=<file> arch=<subnet>`, to an export."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.parity import ofa
from benchmarks.parity.golden import LOGIT, error, images, load, original_state, read
from benchmarks.parity.report import Report
from supernet.export import load_subnet

ROOT = Path(__file__).parents[2]
TOLERANCE = 5e-5  # of the largest logit; both in fp32


class Recipe(dict[str, Any]):
    """What training codes pickle next to their weights: a configuration of a class that only they have."""


@dataclass(frozen=True)
class Subnet:
    """What to export: `arch` is a name, or a dictionary that goes through a file. `more` are further settings."""

    tag: str
    arch: str | dict[str, Any]
    logits: NDArray[np.float32]
    more: tuple[str, ...] = ()


def compare(code: str, golden: Path, report: Report) -> None:
    """Export subnets of every supernet of `code`, and compare their logits with the original's, in fp32."""
    files = {"alphanet": _alphanet, "ofa": _ofa, "autoformer": _autoformer}[code](golden / code)
    for name, content, subnets in files:
        with TemporaryDirectory() as folder:
            file = Path(folder) / name
            torch.save(content, file)
            errors = {subnet.tag: _export(file, subnet) for subnet in subnets}
        report.add(f"round trip, {name}", errors, TOLERANCE, LOGIT)


@torch.no_grad()
def _export(file: Path, subnet: Subnet) -> float:
    """The error of the exported subnet's logits; infinite where nothing is exported."""
    runs, arch = file.parent / subnet.tag, subnet.arch
    if isinstance(arch, dict):
        path = file.parent / f"{subnet.tag}.json"
        path.write_text(json.dumps(arch))
        arch = str(path)
    settings = [f"checkpoint={file}", f"arch={arch}", f"runs_dir={runs}", "device=cpu", *subnet.more]
    done = subprocess.run([sys.executable, "search.py", *settings], cwd=ROOT, capture_output=True, text=True)
    folders = list(runs.glob("pretrained/*/search/*/subnet"))
    if done.returncode or len(folders) != 1:
        print(done.stdout[-2000:], done.stderr[-2000:], file=sys.stderr)
        return float("inf")
    side = read(folders[0] / "config.json")["input"]["resolution"]
    return error(load_subnet(folders[0])(images(2, side).float()), subnet.logits)


Files = Iterator[tuple[str, dict[str, Any], list[Subnet]]]


def _alphanet(folder: Path) -> Files:
    """As AttentiveNAS and AlphaNet save them: parallel training's prefix, and their configuration object."""
    logits, archs = load(folder / "logits_eval_tame.npz"), read(folder / "archs.json")["archs"]
    filled = original_state(folder / "state_dict.json", tame=True)
    state = {f"module.{key}": tensor for key, tensor in filled.items()}
    content = {"epoch": 360, "state_dict": state, "optimizer": {"state": {}}, "args": Recipe(arch="alphanet")}
    subnets = [Subnet(tag, archs[tag]["arch"], logits[tag]) for tag in ("min", "max", "random_00")]
    yield "alphanet.pth.tar", content, [*subnets, Subnet("a4", "alphanet_a4", logits["attentive_nas_a4"])]


def _ofa(folder: Path) -> Files:
    for original in ofa.SPACES:
        logits = load(folder / f"{original}.logits.npz")["logits"]
        entries = read(folder / f"{original}.archs.json")["archs"]
        subnets = [
            Subnet(e["tag"], {**e["arch"], "image_size": e["image_size"]}, logits[row])
            for row, e in enumerate(entries)
            if e["tag"] in ("min", "rand00")
        ]
        yield f"ofa_{original}", {"state_dict": original_state(folder / f"{original}.state_dict.json")}, subnets


def _autoformer(folder: Path) -> Files:
    for size in ("tiny", "small", "base"):
        name = f"autoformer_{size}"
        golden = load(folder / f"{name}.logits.npz")
        logits = dict(zip(golden["tags"].tolist(), golden["logits"], strict=True))
        entries = {entry["tag"]: entry for entry in read(folder / f"{name}.archs.json")["archs"]}
        state = original_state(folder / f"{name}.state_dict.json")
        content = {"model": state, "optimizer": {"state": {}}, "epoch": 499, "args": Namespace(model=""), "scaler": {}}
        wider = ("+space.mlp_ratio=[3,3.5,4]",) if size == "tiny" else ()  # the published one is outside its space
        published = Subnet(
            "published", name.replace(f"_{size}", f"_{size[0]}"), logits[f"published_{size[0].upper()}"], wider
        )
        yield (
            f"supernet-{size}.pth",
            content,
            [Subnet("rand00", entries["rand00"]["arch"], logits["rand00"]), published],
        )
