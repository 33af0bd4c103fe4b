"""What a step with a mixture of subnets costs, in time and in memory, against a step of the largest subnet.

    python -m benchmarks.mixture [--only time|memory] [--spaces mbv3_tiny conv_macro alphanet autoformer_tiny]
                                 [--batch 64] [--rounds 12] [--threads 1] [--device cpu] [--out <folder>]

Time: one forward and backward on random images, cross-entropy, in training mode. The mixture has random probabilities
for the options of every gene but the resolution. Arms: weights and probabilities learn; the weights alone; the
probabilities alone. A round times every arm once, with the same network, in another order each time. Shown is the
median over rounds of the ratio to the largest subnet's step of the same round, with the quartiles. Times are
wall-clock, on a GPU with the work waited for; on a CPU with one thread they are the process's own CPU time.

Memory: small spaces whose widths, kernels, or both have 2, 3 or 5 options and the same largest. Counted are the bytes
that the forward pass keeps for the backward pass (storages, each once, parameters left out), at two batch sizes: so the
share that grows with the batch (activations) is told apart from the share that does not (gated weights, gates). And
the peak of all bytes that PyTorch allocates during the step, by its allocator's own records.

Writes `mixture_time.json` and `mixture_memory.json`. Exits with 1 where both learn at more than 1.3 times the step of
the largest subnet, where activations differ between numbers of options, or where the peak with most options is more
than 2% above that with fewest.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks import arms
from supernet.build import build, pick_device
from supernet.errors import UserError
from supernet.mixture import Mixture
from supernet.models import conv_macro, mbconv, vit
from supernet.net import Supernet, memory_format
from supernet.runs import write_json
from supernet.space import Space

LIMIT, GROWTH = 1.3, 1.02
LARGEST, BOTH = "largest subnet", "mixture, both learn"
LEARNS = {  # weights, probabilities
    BOTH: (True, True),
    "mixture, weights learn": (True, False),
    "mixture, probabilities learn": (False, True),
}
WARM_UP = 2


@dataclass(frozen=True)
class Setting:
    """How a space is timed: side of the images (px), batch size, channels, classes, and whether the limit holds.

    It does not where operations are mixed in their outputs, so that each of them runs.
    """

    side: int
    batch: int
    channels: int = 3
    classes: int = 10
    limited: bool = True


SETTINGS = {
    "mbv3_tiny": Setting(28, 64, channels=1),
    "conv_macro": Setting(32, 64),
    "alphanet": Setting(192, 8, classes=1000),
    "autoformer_tiny": Setting(224, 8, classes=1000),
    "toy_cell": Setting(28, 64, channels=1, limited=False),
    "nb201": Setting(32, 16, limited=False),
}
DEFAULT = ("mbv3_tiny", "conv_macro", "alphanet", "autoformer_tiny")


class Bench:
    """A supernet with one batch of random images, and random architecture parameters.

    Args:
        side: of the images, px; one of the space's resolutions.
        batch: images.
    """

    def __init__(self, net: Supernet, side: int, batch: int) -> None:
        rng = torch.Generator().manual_seed(0)
        self.net, self.space = net.train(), net.space
        self.device = next(net.parameters()).device
        channels, classes = (self.space.description[key] for key in ("in_channels", "num_classes"))
        images = torch.randn(batch, channels, side, side, generator=rng)
        self.images = images.to(self.device, memory_format=memory_format(net))
        self.targets = torch.randint(classes, (batch,), generator=rng).to(self.device)
        self.logits = [torch.randn(len(g.options), generator=rng).requires_grad_() for g in self.space.genes]
        self.largest = self.space.from_json({**self.space.largest().to_json(), "resolution": side})
        sides = next((gene.options for gene in self.space.genes if gene.key == "resolution"), (side,))
        self.position = sides.index(side)

    def step(self, arm: str) -> None:
        """One forward and backward pass; gradients add up."""
        probs_learn = LEARNS.get(arm, (True, False))[1]
        with torch.set_grad_enabled(probs_learn):
            probs = [logits.softmax(0).to(self.device) for logits in self.logits]
        what = self.largest if arm == LARGEST else Mixture.of(self.space, probs, self.position)
        F.cross_entropy(self.net(self.images, what), self.targets).backward()

    def prepare(self, arm: str) -> None:
        """Let those weights learn that the arm trains."""
        self.net.requires_grad_(LEARNS.get(arm, (True, False))[0])


# Time --------------------------------------------------------------------------------------------------------------


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """What a call takes: the process's own time with one CPU thread, else wall-clock."""
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = clock()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - begin


def measure(bench: Bench, rounds: int) -> dict[str, np.ndarray]:
    """Seconds of a step [rounds] for each arm; rounds of the same number belong together."""
    names = [LARGEST, *LEARNS]
    found: dict[str, list[float]] = {arm: [] for arm in names}
    for number in range(WARM_UP + rounds):
        for arm in np.random.default_rng(number).permutation(names).tolist():
            bench.prepare(arm)
            value = seconds(partial(bench.step, arm), bench.device)
            if number >= WARM_UP:
                found[arm].append(value)
    return {arm: np.array(values) for arm, values in found.items()}


def ratios(found: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Of every arm: median milliseconds, and median and quartiles of the ratio to the largest subnet's step."""
    facts = {}
    for arm, values in found.items():
        low, middle, high = np.percentile(values / found[LARGEST], [25, 50, 75])
        facts[arm] = {"ms": 1e3 * float(np.median(values)), "ratio": float(middle), "q1": float(low), "q3": float(high)}
    return facts


def time_space(name: str, setting: Setting, rounds: int, device: torch.device) -> dict[str, Any]:
    """The figures of one space."""
    net = build(name, num_classes=setting.classes, in_channels=setting.channels)
    net = net.to(device).to(memory_format=torch.channels_last)  # training's default
    bench = Bench(net, setting.side, setting.batch)
    conditions = {"side": setting.side, "batch": setting.batch, "limited": setting.limited}
    return {**conditions, "arms": ratios(measure(bench, rounds))}


# Memory ------------------------------------------------------------------------------------------------------------

WIDTHS = {2: (16, 64), 3: (16, 40, 64), 5: (16, 24, 40, 48, 64)}
KERNELS = {2: (3, 11), 3: (3, 7, 11), 5: (3, 5, 7, 9, 11)}
SIDE, BATCH = 32, 8


def mbconv_space(width: Sequence[int], kernel: Sequence[int]) -> Space:
    """A stem, two stages of two blocks, the second with squeeze-excite, and a head."""
    stage = {"width": width, "depth": [2], "kernel": kernel, "expand": [3], "stride": 2}
    return mbconv.space(
        name="mbconv",
        resolution=(SIDE,),
        stem={"width": width, "kernel": 3, "stride": 1},
        stages=[stage, {**stage, "se": True}],
        head={"width": [64]},
        num_classes=10,
    )


def conv_macro_space(width: Sequence[int], kernel: Sequence[int]) -> Space:
    """Four convolutions without norms, a fixed fifth, and a classifier."""
    return conv_macro.space("conv_macro", (SIDE,), (tuple(width),) * 4, tuple(kernel), last_width=64, hidden=(64,))


def vit_space(width: Sequence[int], kernel: Sequence[int]) -> Space:
    """Two transformer blocks, the embedding's width elastic; there are no kernels."""
    return vit.space(
        name="vit",
        resolution=(SIDE,),
        patch=4,
        embed_dim=tuple(width),
        num_heads=(2, 4),
        mlp_ratio=(2.0, 4.0),
        layer_num=(2,),
        head_dim=16,
        super_dim=64,
        super_mlp_ratio=4.0,
        relative_position=4,
        num_classes=10,
        in_channels=3,
    )


FAMILIES = {
    "mbconv": (mbconv_space, ("width", "kernel", "both")),
    "conv_macro": (conv_macro_space, ("width", "kernel", "both")),
    "vit": (vit_space, ("width",)),
}


def case(family: str, axis: str, options: int) -> Space:
    """A space with so many options of an axis; the other axis has its largest only."""
    width = WIDTHS[options] if axis in ("width", "both") else (WIDTHS[2][-1],)
    kernel = KERNELS[options] if axis in ("kernel", "both") else (5,)
    return FAMILIES[family][0](width, kernel)


def saved_bytes(net: nn.Module, call: Callable[[], object]) -> int:
    """What a pass keeps for its backward pass: storages, each once, but for those of parameters and buffers."""
    known = {tensor.untyped_storage().data_ptr() for tensor in (*net.parameters(), *net.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the storage lives as long as the graph, so no other gets its address

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        call()
    return sum(kept.values())


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """The most that is allocated at any time during a call, on top of what was there before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    recorder: Any = profiler.profiler
    events = [event for event in recorder.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return int(np.cumsum([0, *changes]).max())


def memory_of(space: Space, arm: str, device: torch.device) -> dict[str, float]:
    """Bytes that one step keeps (in all, for each image, whatever the batch) and its peak, for `BATCH` images."""
    net = Supernet(space).to(device).to(memory_format=torch.channels_last)
    found = []
    for batch in (BATCH, 2 * BATCH):
        bench = Bench(net, SIDE, batch)
        bench.prepare(arm)
        bench.step(arm)  # from here on all gradients are there
        found.append(saved_bytes(net, partial(bench.step, arm)))
    bench = Bench(net, SIDE, BATCH)
    bench.step(arm)
    each = (found[1] - found[0]) / BATCH
    peak = peak_bytes(partial(bench.step, arm), device)
    return {"saved": found[0], "per_image": each, "fixed": found[0] - BATCH * each, "peak": peak}


def memory(counts: Sequence[int], device: torch.device, families: Sequence[str] = ()) -> list[dict[str, Any]]:
    """A row for every family, axis and number of options."""
    rows = []
    for family, axis in ((f, axis) for f in families or FAMILIES for axis in FAMILIES[f][1]):
        for options in counts:
            space = case(family, axis, options)
            found = {arm: memory_of(space, arm, device) for arm in (LARGEST, BOTH)}
            rows.append({"family": family, "axis": axis, "options": options, "arms": found})
    return rows


# Report ------------------------------------------------------------------------------------------------------------


def time_tables(found: Mapping[str, Any]) -> Iterator[Table]:
    for name, facts in found.items():
        drawn = Table("arm", "step, ms", "ratio", "quartiles", "limit", title=f"{name}, batch {facts['batch']}")
        for arm, row in facts["arms"].items():
            limit = f"{LIMIT:.2f}" if facts["limited"] and arm == BOTH else ""
            drawn.add_row(arm, f"{row['ms']:.1f}", f"{row['ratio']:.3f}", f"{row['q1']:.3f}-{row['q3']:.3f}", limit)
        yield drawn


def memory_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    columns = ("kept for each image, kB", "of the largest", "kept whatever the batch, kB", "peak, kB", "of the largest")
    drawn = Table("family", "elastic", "options", *columns, title=f"one step of a mixture, batch {BATCH}")
    for row in rows:
        one, largest = row["arms"][BOTH], row["arms"][LARGEST]
        times = [f"{one[key] / largest[key]:.3f}" for key in ("per_image", "peak")]
        cells = (f"{one['per_image'] / 1e3:.1f}", times[0], f"{one['fixed'] / 1e3:.0f}", f"{one['peak'] / 1e3:.0f}")
        drawn.add_row(row["family"], row["axis"], str(row["options"]), *cells, times[1])
    return drawn


def grows(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where memory depends on the number of options: activations at all, the peak by more than `GROWTH`."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["options"]):
        groups.setdefault((row["family"], row["axis"]), []).append(row["arms"][BOTH])
    worse = []
    for (family, axis), found in groups.items():
        each, peaks = [row["per_image"] for row in found], [row["peak"] for row in found]
        if max(each) != min(each) or peaks[-1] > GROWTH * peaks[0]:
            worse.append(f"{family}, {axis}")
    return worse


def slow(found: Mapping[str, Any]) -> list[str]:
    """The spaces that exceed the limit of time."""
    return [name for name, facts in found.items() if facts["limited"] and facts["arms"][BOTH]["ratio"] > LIMIT]


def main() -> int:
    """The exit code: 0 where everything is inside its limits."""
    options = _options()
    arms.use_threads(options.threads)
    console = Console(highlight=False, width=None if Console().is_terminal else 130)
    try:
        device = pick_device(options.device)
    except UserError as error:
        sys.exit(str(error))
    options.out.mkdir(parents=True, exist_ok=True)
    about = {"environment": arms.machine(), "device": device.type, "threads": torch.get_num_threads()}
    failed = []
    if options.only != "memory":
        found = {}
        for name in options.spaces:
            known = SETTINGS[name]
            setting = Setting(known.side, options.batch or known.batch, known.channels, known.classes, known.limited)
            found[name] = time_space(name, setting, options.rounds, device)
            console.print(next(time_tables({name: found[name]})))
        write_json(options.out / "mixture_time.json", {**about, "rounds": options.rounds, "spaces": found})
        failed += slow(found)
    if options.only != "time":
        rows = memory(tuple(WIDTHS), device)
        console.print(memory_table(rows))
        write_json(options.out / "mixture_memory.json", {**about, "batch": BATCH, "side": SIDE, "rows": rows})
        failed += grows(rows)
    if failed:
        console.print(f"outside the limits: {'; '.join(failed)}", style="yellow")
    return 1 if failed else 0


def _options() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser("python -m benchmarks.mixture", description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("all", "time", "memory"), default="all")
    parser.add_argument("--spaces", nargs="+", choices=tuple(SETTINGS), default=list(DEFAULT))
    parser.add_argument("--batch", type=int, help="default: each space's own")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
