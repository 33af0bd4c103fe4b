"""What a run trains, and when: the parts that choose subnets and images, put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from supernet.construct import construct
from supernet.data_samplers.base import DataSampler, Visits, WatchesImages
from supernet.distributed import ALONE, Ranks
from supernet.errors import UserError
from supernet.horizon import Horizon
from supernet.learned import Learned
from supernet.net import Supernet
from supernet.observers import ImageScores, OnGradients
from supernet.paths.base import Counts, LossOf, PathSampler, WatchesGradients
from supernet.phases.base import Phase, Phases
from supernet.reduce import gathered
from supernet.samplers.base import ArchSampler, Slot
from supernet.sharing.members import MemberGradients, members_of
from supernet.space import Arch
from supernet.step import Observer

PARTS = ("path_sampler", "data_sampler")


class Course:
    """The arch sampler, path sampler, data sampler and phases of a run.

    Args:
        config: the whole configuration of the run.
        net: the supernet.
        num_images: in the training split.
        horizon: the length of the run.
        ranks: the processes that train together. What learns, learns from the whole batch in each of them.
    """

    def __init__(
        self, config: Mapping[str, Any], net: Supernet, num_images: int, horizon: Horizon, ranks: Ranks = ALONE
    ) -> None:
        self.config, self.net, self.space = config, net, net.space
        self.seed, self.horizon, self.ranks = config["seed"], horizon, ranks
        schedule = construct(config["schedule"], "schedule")
        self.phases: Phases = construct(config["phases"], "phases", space=net.space, horizon=horizon, schedule=schedule)
        self.data_sampler: DataSampler = construct(
            config["data_sampler"], "data_sampler", num_images=num_images, seed=self.seed, horizon=horizon
        )
        self._drawn: dict[Arch, Arch] = {}  # of this step: subnets of the whole space -> of the phase's space
        self._step = 0
        self._gradients = MemberGradients(net, self._hand_on, self._wanted, ranks)
        self._on_gradients: Sequence[OnGradients] = ()
        self._make(self.phases.phase(0))

    def slots(self, step: int, loss_of: LossOf) -> list[Slot]:
        """The passes of training step `step`, all of the run's whole space."""
        phase = self.phases.phase(step)
        self._enter(phase)
        self._step, self._drawn = step, {}
        if phase.largest_only:
            slots = [Slot(phase.space.largest(), "largest")]
        else:
            slots = self.sampler.slots(
                step, lambda count: self.path_sampler.draw(step, count, lambda arch: loss_of(self._whole(arch)))
            )
        return [replace(slot, arch=self._whole(slot.arch)) for slot in self.phases.slots(step, slots)]

    def visits(self, epoch: int) -> Visits:
        """Which images an epoch visits, with what weights."""
        return self.data_sampler.visits(epoch)

    def lr(self, step: int) -> float:
        """The factor on the base learning rate."""
        return self.phases.lr(step)

    def observers(self, step: int, images: ImageScores, gradients: Sequence[OnGradients] = ()) -> list[Observer]:
        """What must look at the passes of this step, for the parts that learn and for `gradients`.

        `images` gathers scores for `learn_images`; each of `gradients` is called with what every slot alone gives.
        """
        self._on_gradients = gradients
        found: list[Observer] = []
        if isinstance(self.data_sampler, WatchesImages):
            found.append(images)
        if self.sums_each_slot(step):
            found.append(self._gradients)
        return found

    def sums_each_slot(self, step: int) -> bool:
        """Whether the observers of this step look at what single slots give, and sum that over the processes."""
        return bool(self._on_gradients) or self._paths_learn(step)

    def learn_images(self, index: Tensor, images: ImageScores, total: int | None = None) -> None:
        """After a step: the data sampler sees the scores of the images at positions `index` [B].

        `total` counts those of the whole batch, where these are this process's share of it.
        """
        scores, total = images.scores, len(index) if total is None else total
        if isinstance(self.data_sampler, WatchesImages) and scores is not None:
            self.data_sampler.observe(gathered(self.ranks, index, total), gathered(self.ranks, scores, total))

    def state_dict(self) -> dict[str, Any]:
        """What the parts have learned."""
        parts = {name: getattr(self, name) for name in PARTS}
        return {name: part.state_dict() for name, part in parts.items() if isinstance(part, Learned)}

    def load_state_dict(self, step: int, state: Mapping[str, Any]) -> None:
        """The inverse, for a run that goes on with `step`."""
        # The state is that of the last step done: a phase that begins with `step` begins anew.
        self._enter(self.phases.phase(max(step - 1, 0)))
        for name in PARTS:
            part = getattr(self, name)
            if isinstance(part, Learned):
                part.load_state_dict(state[name])

    def report(self) -> dict[str, float]:
        """{"paths/entropy": ..., "data/coverage": ...}: figures of the parts that learn. May wait for the device."""
        values: dict[str, float] = {}
        for name in PARTS:
            part = getattr(self, name)
            if isinstance(part, Learned):
                short = {"path_sampler": "paths", "data_sampler": "data"}[name]
                values |= {f"{short}/{key}": value for key, value in part.report().items()}
        return values

    # Internals -------------------------------------------------------------------------------------------------

    def _make(self, phase: Phase) -> None:
        """The samplers of a phase, new."""
        self.phase = phase
        random = {} if phase.num_random is None else {"num_random": phase.num_random}
        if random and "num_random" not in self.config["sampler"]:
            target = self.config["sampler"]["_target_"].split(".")[-1].lower()
            raise UserError(f"sampler={target}: these phases set the number of random subnets; use uniform or sandwich")
        self.sampler: ArchSampler = construct({**self.config["sampler"], **random}, "sampler", space=phase.space)
        try:
            self.path_sampler: PathSampler = construct(
                self.config["path_sampler"], "path_sampler", space=phase.space, seed=self.seed, horizon=self.horizon
            )
            if isinstance(self.path_sampler, Counts):
                self.path_sampler.check(getattr(self.sampler, "num_random", 0))
        except UserError as error:
            where = "" if phase.space is self.space else f"phase {phase.name!r}: "
            raise UserError(f"{where}{error}") from None
        if isinstance(self.path_sampler, WatchesGradients):
            self.path_sampler.attach(dict(members_of(self.net)[0].net.named_parameters()))

    def _enter(self, phase: Phase) -> None:
        """Those of a phase that may be the present one; while the space stays the same, what was learned is kept."""
        before, learned = self.phase, self.path_sampler
        if phase is not before:
            self._make(phase)
            if phase.space is before.space:
                self.path_sampler = learned

    def _whole(self, arch: Arch) -> Arch:
        """The same subnet as one of the run's whole space."""
        if self.phase.space is self.space:
            return arch
        whole = self.space.from_json(arch.to_json())
        self._drawn[whole] = arch
        return whole

    def _paths_learn(self, step: int) -> bool:
        return isinstance(self.path_sampler, WatchesGradients) and self.path_sampler.wants(step)

    def _wanted(self, slot: Slot) -> bool:
        return bool(self._on_gradients) or (slot.role == "random" and self._paths_learn(self._step))

    def _hand_on(self, slot: Slot, gradients: Mapping[str, Tensor]) -> None:
        if slot.weight == 0:
            return
        if slot.weight != 1:  # what the subnet gives, whatever it counts for
            each = torch._foreach_div(list(gradients.values()), slot.weight)
            gradients = dict(zip(gradients, each, strict=True))
        for receive in self._on_gradients:
            receive(slot, gradients)
        if slot.role == "random" and isinstance(self.path_sampler, WatchesGradients) and self._paths_learn(self._step):
            self.path_sampler.observe(self._step, self._drawn.get(slot.arch, slot.arch), gradients)
