"""The loop of gradient-based search: weights and architecture parameters, epoch by epoch, resumable at every step."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from search.begun import STATE
from search.constraint import Budget
from search.gradient.batches import Halves
from search.gradient.decode import decode
from search.gradient.parameters import ArchParameters, entropy, snapshot
from search.gradient.problem import Step, frozen_probs
from search.gradient.search import GradientSearch
from search.gradient.select.base import SelectState
from search.gradient.trace import Record, Trace
from supernet import checkpoint
from supernet.construct import construct
from supernet.cost import Additive
from supernet.data.base import Batch, resize
from supernet.distill import at_least_fp32
from supernet.errors import UserError
from supernet.evaluate import Metrics
from supernet.interrupt import StopRequest
from supernet.log import RunLog
from supernet.mixture import Mixture
from supernet.mixture.expected import ExpectedCost
from supernet.optim import parameter_groups, zero_gradients
from supernet.space import Arch

if TYPE_CHECKING:
    from supernet.data import Data
    from supernet.net import Supernet

TUNED = 0.1  # rate of a selection's tuning, as a share of the search's own (DARTS-PT: 0.0025 after 0.025)
TUNED_END = 0.04  # what that falls to, likewise
SHOWN = 80  # characters of a setting that has changed


@dataclass
class Learner:
    """Networks, architecture parameters and optimizers of one search. Also a `select.base.Trained`.

    All randomness comes from (seed, step), so a resumed search repeats nothing else.

    Args:
        learn_weights: false: the weights stay as they are, the architecture parameters alone learn.
        fresh: the weights are initial ones. Others have seen the training images: architecture parameters then learn on
            the split held out for searches, unless the settings say otherwise.
        setup: whatever decides the result; a resumed search must have the same.
    """

    settings: GradientSearch
    net: Supernet
    data: Data
    budget: Budget
    batch_size: int
    seed: int
    learn_weights: bool
    folder: Path
    log: RunLog
    setup: Mapping[str, Any]
    fresh: bool = True
    frozen: dict[int, int] = field(default_factory=dict)  # genes that a selection has decided
    baseline: Tensor | None = None  # running mean of the loss, where there are several resolutions
    step: int = 0

    def __post_init__(self) -> None:
        settings, space = self.settings, self.net.space
        self.space, self.device = space, next(self.net.parameters()).device
        self.nets = [self.net, *(copy.deepcopy(self.net) for _ in range(settings.update.copies - 1))]
        for net in self.nets:
            net.train().requires_grad_(self.learn_weights)
        self.optimizers = [self._optimizer(net) for net in self.nets] if self.learn_weights else []
        self.base_lr = float(settings.optim.get("lr", 1e-3))
        self.arch = ArchParameters(space, self.seed)
        if settings.arch_from is not None:
            self._begin_with(Path(settings.arch_from))
        self.arch_optimizer = torch.optim.Adam(
            self.arch.parameters(),
            lr=settings.arch_rate(self.learn_weights),
            betas=settings.arch_betas,
            weight_decay=settings.arch_decay,
        )
        split = settings.arch_split
        source = ("train" if self.fresh else "search") if split == "auto" else split
        portion = settings.train_portion if self.learn_weights else 1.0
        self.halves = Halves(self.data, self.seed, self.batch_size, portion, source, self.learn_weights)
        self.total_steps = settings.epochs * self.halves.steps_per_epoch
        # Without steps of the weights there is nothing to wait for.
        self.warmup_epochs = settings.warmup_epochs if self.learn_weights else 0
        self.arch_every = settings.arch_every if self.learn_weights else 1
        self.side = next((i for i, gene in enumerate(space.genes) if gene.key == "resolution"), None)
        self.operations = [i for i, gene in enumerate(space.genes) if isinstance(gene.options[0], str)]
        self.costs = {name: ExpectedCost(measure) for name, measure in self._additive().items()}
        self.trace = Trace(self.folder, space, self.budget)
        self.selected: Mapping[str, Any] | None = None  # what a selection has saved
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._stop = StopRequest()  # of the selection
        self._seconds, self._started = 0.0, time.perf_counter()

    def _additive(self) -> dict[str, Additive]:
        """The measures that have an expectation; MACs always, for the log."""
        found = {}
        for name, measure in self.budget.measures.items():
            additive = getattr(measure, "additive", measure)
            if isinstance(additive, Additive) and (name in self.budget.windows or name == "macs"):
                found[name] = additive
        return found

    def _optimizer(self, net: Supernet) -> torch.optim.Optimizer:
        optim = dict(self.settings.optim)
        groups = parameter_groups(net, optim.get("weight_decay", 0.0))
        made: torch.optim.Optimizer = construct(optim, "algorithm.optim", params=groups)
        zero_gradients(net)
        return made

    # What steps and selections read ----------------------------------------------------------------------------

    @property
    def progress(self) -> float:
        """The share of the search that is done, 0 to 1."""
        return min(1.0, self.step / max(1, self.total_steps - 1))

    def probabilities(self) -> list[Tensor]:
        """One vector [options] per gene, detached; decided genes are certain."""
        with torch.no_grad():
            return frozen_probs(self.settings.mix.mean(self.arch.logits()), self.frozen)

    def expected(self) -> dict[str, Tensor]:
        """Expected costs, differentiable, by measure."""
        probs = frozen_probs(self.settings.mix.mean(self.arch.logits()), self.frozen)
        return {name: cost(probs) for name, cost in self.costs.items()}

    # The loop --------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """All epochs.

        Raises:
            KeyboardInterrupt: after Ctrl-C or SIGTERM, once the state is saved.
            UserError: if a loss is no longer finite; the state before it is kept.
        """
        settings, per_epoch = self.settings, self.halves.steps_per_epoch
        if self.step >= self.total_steps:
            return
        with StopRequest() as stop, self.log.progress(self.total_steps, "search", self.step) as progress:
            while self.step < self.total_steps:
                epoch, first = divmod(self.step, per_epoch)
                for train, arch in self.halves.epoch(epoch, first):
                    lr = self.base_lr * settings.schedule(self.step, per_epoch, self.total_steps)
                    self.one(train, arch, lr, learn_arch=epoch >= self.warmup_epochs)
                    progress.advance(1)
                    if stop.requested:
                        break
                if self.step % per_epoch == 0:
                    self._end_of_epoch(epoch + 1, lr)
                self.save_state()
                if stop.requested:  # after the last step too: a selection can take long
                    raise KeyboardInterrupt

    def select(self) -> Arch:
        """The subnet that the settings' selection finds, inside the budget; the state is saved.

        Raises:
            KeyboardInterrupt: after Ctrl-C or SIGTERM, before the next score or step of tuning.
            UserError: as `run` does.
        """
        with StopRequest() as self._stop:
            state = SelectState(self.budget, self, self.seed, self.log, self.selected)
            arch = self.settings.select.select(state)
            self.save_state()
            self._stop_if_asked()
        return arch

    def _stop_if_asked(self) -> None:
        if self._stop.requested:
            raise KeyboardInterrupt

    def one(self, train: Batch, arch: Batch, lr: float, learn_arch: bool) -> None:
        """One step, on a batch for the weights and one for the architecture parameters."""
        step = Step(self, self.step, train, arch, lr)
        learn_arch = learn_arch and self.step % self.arch_every == 0
        losses = self.settings.update.step(step, self.learn_weights, learn_arch)
        step.end()
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value
            self._counts[name] = self._counts.get(name, 0) + 1
        self.step += 1

    def seconds_per_step(self, learn_arch: bool, count: int = 3) -> float:
        """Measured on the first steps, after one that is not counted; they are real ones."""
        batches, step = self.halves.epoch(0), self.arch_every  # a step at which the architecture parameters learn
        for number, (train, arch) in enumerate(islice(cycle(islice(batches, count)), count + 1)):
            self.step = step
            self.one(train, arch, self.base_lr, learn_arch)
            self._means()  # waits for the device
            if number == 0:
                start = time.perf_counter()
        return (time.perf_counter() - start) / count

    def _means(self) -> dict[str, float]:
        """Losses since the last call; waits for the device."""
        means = {name: total.item() / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        if any(not math.isfinite(mean) for mean in means.values()):
            raise self.diverged("a loss")
        return means

    def _end_of_epoch(self, epoch: int, lr: float) -> None:
        means = self._means()
        probs = self.probabilities()
        arch = decode(self.budget, [p.log() for p in probs])
        with torch.no_grad():
            expected = {name: float(value) for name, value in self.expected().items()}
        genes = entropy(probs, normalised=True).tolist()
        record = Record(
            epoch=epoch,
            step=self.step,
            seconds=round(self.seconds, 2),
            losses=means,
            lr=lr,
            expected=expected,
            bound=self.settings.bound.report(),
            entropy=genes,
            probs=snapshot(probs),
            decoded=arch.to_json(),
            costs=self.budget.costs(arch),
        )
        self.trace.add(record)
        self.log.say(self.trace.line(record))

    @property
    def seconds(self) -> float:
        """Spent so far, restarts included."""
        return self._seconds + time.perf_counter() - self._started

    def diverged(self, what: str) -> UserError:
        """What to say when training has failed."""
        return UserError(
            f"{what} became NaN or infinite by step {self.step + 1}: lower algorithm.optim.lr or algorithm.arch_lr, or "
            "set algorithm.clip_norm=1; what was saved before is kept and still good"
        )

    # A selection's view ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, probs: Sequence[Tensor], support: Sequence[tuple[int, ...]], max_images: int | None) -> Metrics:
        """See `Trained.evaluate`."""
        self._stop_if_asked()
        weight = next(self.net.parameters())
        on_device = tuple(p.to(weight.device, weight.dtype) for p in probs)
        mixture = Mixture(self.space, on_device, tuple(support), self.settings.partial_channels)
        correct, loss, count = torch.zeros((), device=self.device), torch.zeros((), device=self.device), 0
        for images, targets in self.data.evaluation("search", mixture.resolution, max_images):
            logits = at_least_fp32(self.net(resize(images, mixture.resolution), mixture))
            correct += (logits.argmax(1) == targets).sum()
            loss += F.cross_entropy(logits, targets, reduction="sum")
            count += len(targets)
        return Metrics(100.0 * correct.item() / count, loss.item() / count, count)

    def tune(self, frozen: Mapping[int, int], epoch: int) -> None:
        """See `Trained.tune`. The rate falls from a tenth of the search's along a cosine."""
        self.frozen = dict(frozen)
        per_epoch = self.halves.steps_per_epoch
        if epoch == 0:
            for optimizer in self.optimizers:
                optimizer.state.clear()
        total = max(1, self.settings.select.epochs(self.space))
        lr = self.base_lr * (TUNED_END + (TUNED - TUNED_END) * 0.5 * (1 + math.cos(math.pi * epoch / total)))
        with self.log.progress(per_epoch, f"tuning {epoch + 1}") as progress:
            for train, arch in self.halves.epoch(self.settings.epochs + epoch):
                self._stop_if_asked()  # the epoch is done again: its beginning is what was saved
                self.one(train, arch, lr, learn_arch=True)
                progress.advance(1)
        self._means()

    def save(self, partial: Mapping[str, Any]) -> None:
        """See `Trained.save`."""
        self.selected = dict(partial)
        self.save_state()

    # Saving ----------------------------------------------------------------------------------------------------

    def save_state(self) -> None:
        """Write what `restore` needs to go on bit for bit, and the trace."""
        finite = [parameter.isfinite().all() for net in self.nets for parameter in net.parameters()]
        if not torch.stack(finite).all():
            raise self.diverged("a weight")
        state = {
            "setup": json.dumps(self.setup, sort_keys=True, default=str),
            "step": self.step,
            "nets": [net.state_dict() for net in self.nets] if self.learn_weights else [],
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "genes": self._genes(),
            "arch": self.arch.state_dict(),
            "arch_optimizer": self.arch_optimizer.state_dict(),
            "bound": self.settings.bound.state_dict(),
            "baseline": self.baseline,
            "frozen": [list(pair) for pair in self.frozen.items()],
            "sums": {name: (value, self._counts[name]) for name, value in self._sums.items()},
            "selected": None if self.selected is None else json.dumps(self.selected),
            "trace": self.trace.dumps(),
            "seconds": self.seconds,
        }
        checkpoint.save(self.folder / STATE, state)
        self.trace.write()

    def _begin_with(self, folder: Path) -> None:
        """Take the architecture parameters of another gradient search over the same space.

        Raises:
            UserError: if there is none in `folder`, or it is one of another space.
        """
        if not (folder / STATE).is_file():
            raise UserError(f"algorithm.arch_from={folder}: no gradient search is there ({STATE} is missing)")
        state = checkpoint.load(folder / STATE)
        flat = state.get("arch", {}).get("flat")
        if flat is None or state.get("genes") != self._genes() or flat.shape != self.arch.flat.shape:
            raise UserError(f"algorithm.arch_from={folder}: a search of another space than {self.space.name!r}")
        with torch.no_grad():
            self.arch.flat.copy_(flat)

    def _genes(self) -> str:
        """The names and options of all genes."""
        return json.dumps([[gene.name, list(gene.options)] for gene in self.space.genes])

    def restore(self) -> None:
        """Go on from the folder's state.

        Raises:
            UserError: if it is damaged, or of another setup.
        """
        path = self.folder / STATE
        state = checkpoint.load(path)
        now = json.dumps(self.setup, sort_keys=True, default=str)
        if state.get("setup") != now:
            changed = "; ".join(differences(json.loads(state.get("setup", "{}")), json.loads(now)))
            raise UserError(f"{path}: made under another setup ({changed}): repeat its settings")
        try:
            for net, weights in zip(self.nets, state["nets"], strict=self.learn_weights):
                net.load_state_dict(weights)
            for optimizer, its_state in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(its_state)
            self.arch.load_state_dict(state["arch"])
            self.arch_optimizer.load_state_dict(state["arch_optimizer"])
            self.settings.bound.load_state_dict(state["bound"])
            self.baseline = None if state["baseline"] is None else state["baseline"].to(self.device)
            self.frozen = dict(state["frozen"])
            self._sums = {name: value.to(self.device) for name, (value, _) in state["sums"].items()}
            self._counts = {name: count for name, (_, count) in state["sums"].items()}
            self.selected = None if state["selected"] is None else json.loads(state["selected"])
            self.step, self._seconds = state["step"], state["seconds"]
            self.trace.loads(state["trace"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise UserError(f"{path} does not fit this search: {str(error).splitlines()[-1].strip()}") from None


def differences(before: Any, after: Any, at: str = "") -> list[str]:
    """Where two nested plain values differ, for people: "algorithm.epochs was 3, now 4"."""
    if isinstance(before, dict) and isinstance(after, dict):
        inner = [(key, f"{at}.{key}" if at else key) for key in dict.fromkeys([*before, *after])]
        return [line for key, place in inner for line in differences(before.get(key), after.get(key), place)]
    if before == after:
        return []
    values = f"{at} was {before}, now {after}"
    return [values if len(values) <= SHOWN else f"{at} differs"]
