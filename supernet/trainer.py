"""The training loop: step -> evaluate -> save, and everything that resuming needs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from supernet import checkpoint
from supernet.collapse import CollapseGuard
from supernet.compiling import WarmUp, compiled
from supernet.construct import construct
from supernet.course import Course
from supernet.data import Batch, Data, Mix
from supernet.data.base import check_split, resize
from supernet.distill import at_least_fp32
from supernet.distributed import ALONE, Ranks
from supernet.ema import averaged
from supernet.errors import UserError
from supernet.health import HealthMeter
from supernet.health_plot import health
from supernet.horizon import Horizon
from supernet.interrupt import StopRequest
from supernet.log import METRICS, RunLog
from supernet.memory import peak_memory_mb
from supernet.meter import LossMeter, not_finite
from supernet.micro_batch import micro_batches
from supernet.monitor import final_scores, scores, watched
from supernet.net import Supernet
from supernet.observers import ImageScores
from supernet.optim import for_members, parameter_groups, zero_gradients
from supernet.phases.base import Phase
from supernet.plots import curves
from supernet.recompute import checkpoint_activations
from supernet.reduce import Vote
from supernet.runs import CHECKPOINT, plain
from supernet.settings import TrainSettings
from supernet.shares import Shares
from supernet.sharing.members import Resting, member_of, members_of
from supernet.sorting import sort_training_state
from supernet.space import Arch
from supernet.step import Observer, accumulate, update
from supernet.stored import RESUMED, UNFIT, checked, is_like, load_optimizer, reason
from supernet.teacher import largest_of, load_teacher
from supernet.waiting import WaitMeter

BEST = "best.pt"


class Trainer:
    """One training run in its folder. All randomness comes from (seed, step), so resuming repeats nothing else.

    Args:
        config: the whole composed configuration, plain.
        net: the supernet with its initial weights, on its device.
        data: training, calibration and evaluation images.
        folder: the run's folder; exists already.
        log: where it reports.
        ranks: the processes that train together; each works on its share of every batch, the first one writes.
    """

    def __init__(
        self,
        config: dict[str, Any],
        net: Supernet,
        data: Data,
        folder: Path,
        log: RunLog,
        ranks: Ranks = ALONE,
    ) -> None:
        self.config, self.net, self.data, self.folder, self.log = config, net, data, folder, log
        self.ranks = ranks
        self.settings: TrainSettings = construct(config["train"], "train")
        self.shares = Shares(ranks, self.settings, net)
        if self.settings.channels_last:
            net.to(memory_format=torch.channels_last)
        self.seed: int = config["seed"]
        self.distill = construct(config["distill"], "distill")
        optim = for_members(config["optim"], len(members_of(net)))
        groups = parameter_groups(net, optim.get("weight_decay", 0.0))
        self.optimizer: torch.optim.Optimizer = construct(optim, "optim", params=groups)
        zero_gradients(net)
        if self.settings.checkpoint_activations:
            for member in members_of(net):
                checkpoint_activations(member.net)
        self.resting = Resting(net)
        self.base_lr = float(config["optim"]["lr"])
        self.mix = Mix(data.info.num_classes, self.settings.mixup, self.settings.cutmix)
        self.ema = averaged(net, self.settings.ema_decay) if self.settings.ema_decay else None
        self.splits = ("val", "test") if self.settings.test else ("val",)
        for split in self.splits:
            check_split(split, data.sizes)  # not after hours of training
        self.archs = watched(net.space, self.settings.eval_random)
        self.split_record = plain(data.split_record())
        self.meter = LossMeter(self.shares.mean)
        self.health = HealthMeter(lambda arch: member_of(net, arch), self.shares.mean)
        self.guard = CollapseGuard(data.info.num_classes)
        self.step, self.best = 0, -1.0
        self.newest_is_whole = True  # of the checkpoints
        self.seconds, self._started = 0.0, time.perf_counter()  # spent before and since the last restart
        self.steps_per_epoch = data.steps_per_epoch()
        self.total_steps = self.settings.epochs * self.steps_per_epoch
        horizon = Horizon(self.steps_per_epoch, self.total_steps)
        self.course = Course(config, net, data.sizes["train"], horizon, ranks)
        self.device = next(net.parameters()).device
        self.teacher = load_teacher(config["teacher"], data, self.device) if config["teacher"] else None
        self.weights: Tensor | None = None  # of the training images in this epoch
        self.waiting = WaitMeter()
        mode, part = self.settings.compile, self.settings.micro_batch
        self.compiled = None if mode == "off" else compiled(net, mode, log.say, autocast=self.settings.amp)
        self.micro_batch = None if part == "auto" else part  # "auto" is settled before a run begins

    @property
    def scored_net(self) -> Supernet:
        """The weights that are evaluated and shipped: the moving average where there is one."""
        return self.net if self.ema is None else cast(Supernet, self.ema.module)

    def run(self) -> dict[str, Any]:
        """Train to the end and evaluate; returns the content of `results.json`.

        Raises:
            KeyboardInterrupt: after Ctrl-C or a signal of `NOTICES`, once a checkpoint is written.
            UserError: if a loss is no longer finite; the last good checkpoint is kept.
        """
        self.net.train()
        self.shares.begin(self.net)
        if self.teacher is not None:
            self.shares.synchronise(self.teacher.network)
        self.warm_up()
        vote = Vote(self.ranks)
        with StopRequest() as stop, self.log.progress(self.total_steps, "training", self.step) as progress:
            for batch in self._batches():
                values = self.train_step(batch)
                progress.advance(1, **values)
                with self.waiting.paused():
                    if self._due(self.settings.eval_every, self.settings.eval_steps):
                        self._evaluate()
                    if self._due(1, 0):
                        self._report()
                    stopping = vote(stop.number)  # read once: a signal after the saving waits for the next step
                    if self._due(1, self.settings.save_every) or stopping:
                        self.save()
                if stopping:
                    break
            stop.number = max(self.ranks.gather(stop.number))
        if stop.number:  # after the last step too: the final scores can take long
            self.log.say(f"step {self.step} of {self.total_steps} is saved")
            raise stop.interruption()
        return self._finish()

    def warm_up(self) -> WarmUp | None:
        """Compile what a step needs; None where nothing is to be compiled."""
        if self.compiled is None:
            return None
        settings, info = self.settings, self.data.info
        part = micro_batches(self.shares.images, self.micro_batch)[0]
        images = torch.rand(part.stop, info.channels, info.size, info.size, generator=torch.Generator().manual_seed(0))
        memory = torch.channels_last if settings.channels_last else torch.contiguous_format
        rates = {"dropout": settings.dropout, "drop_path": settings.drop_path}
        warm = self.compiled.warm_up(images.to(self.device, memory_format=memory), rates, settings.amp)
        self.log.say(f"{warm}, train.compile={settings.compile}")
        return warm

    def save(self) -> None:
        """Write the state from which `restore` continues bit for bit; the checkpoints before it are kept."""
        self._refuse_divergence()
        # A damaged newest one must not push a whole one out.
        keep = self.settings.keep_checkpoints if self.newest_is_whole else 1
        self.ranks.once(lambda: checkpoint.save(self.folder / CHECKPOINT, self._state(), keep))
        self.newest_is_whole = True

    def _refuse_divergence(self) -> None:
        self._log_losses()
        finite = torch.stack([parameter.isfinite().all() for parameter in self.net.parameters()])
        if not finite.all():
            raise UserError(not_finite("a weight", self.step))

    def restore(self) -> None:
        """Continue from the folder's newest checkpoint that is whole.

        Raises:
            UserError: if none is, or it belongs to another setup.
        """
        file = checkpoint.newest_whole(self.folder / CHECKPOINT)
        state = checked(file, checkpoint.load(file), RESUMED)
        self.newest_is_whole = file.name == CHECKPOINT
        try:
            self.net.load_state_dict(state["model"])
            if state["step"] > self.total_steps:
                raise ValueError(f"step {state['step']} is beyond the last one, {self.total_steps}")
            optim = for_members(self.config["optim"], len(members_of(self.net)))
            load_optimizer(self.optimizer, lambda params: construct(optim, "optim", params=params), state["optimizer"])
            if self.ema is not None:
                self.ema.module.load_state_dict(state["ema"])
                self.ema.n_averaged.fill_(state["step"])
            self.step, self.best, self.seconds = state["step"], state["best"], state["seconds"]
            self.guard.load_state_dict(state["guard"])
            if self.step:
                if not is_like(state["course"], self.course.state_dict()):
                    raise ValueError("what its samplers have learned is of other ones")
                self.course.load_state_dict(self.step, state["course"])
            if state.get("teacher") is not None:
                self.teacher = largest_of(self.net)
                self.teacher.network.load_state_dict(state["teacher"])
        except UNFIT as error:
            raise UserError(f"{file} does not fit this run's configuration: {reason(error)}") from None
        self.log.truncate_after(self.step)
        if not self.newest_is_whole:
            self.log.warn(f"{self.folder / CHECKPOINT} is damaged or missing: going on from {file.name} before it")
        self.log.say(f"resumed {self.folder} at step {self.step} of {self.total_steps}")

    # Parts of the loop --------------------------------------------------------------------------------------

    def _batches(self) -> Iterator[Batch]:
        while self.step < self.total_steps:
            epoch, first = divmod(self.step, self.steps_per_epoch)
            visits = self.course.visits(epoch)
            self.weights = None if visits.weights is None else visits.weights.to(self.device)
            yield from self.waiting.watch(self.data.train(epoch, first, visits.order, self.ranks))

    def _due(self, epochs: int, steps: int) -> bool:
        """At the end of every `epochs`-th epoch, every `steps` steps (0: never), and after the last step."""
        epoch, rest = divmod(self.step, self.steps_per_epoch)
        in_between = steps > 0 and self.step % steps == 0
        return (rest == 0 and epoch % epochs == 0) or in_between or self.step == self.total_steps

    def train_step(self, batch: Batch) -> dict[str, float]:
        """One optimizer step; returns what the progress bar shows, which costs no synchronisation."""
        settings, step = self.settings, self.step
        phase = self.course.phases.phase(step)
        if step == phase.start and step > 0:
            self._enter(phase)
        images, targets = self.shares.mixed(self.mix, batch.images, batch.targets, self.seed, step)
        if settings.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        slots = self.course.slots(step, lambda arch: self._loss_of(arch, images, targets))
        scores, total = ImageScores(), len(images) if self.ranks.world == 1 else self.shares.total
        losses = accumulate(
            self.compiled or self.net,
            images,
            targets,
            slots,
            self._label_loss,
            self.distill,
            settings.dropout,
            settings.drop_path,
            settings.amp,
            None if self.weights is None else self.weights[batch.index],
            None if self.teacher is None else self.teacher(images, settings.amp),
            self._observers(scores),
            self.micro_batch,
            total,
        )
        if not self.course.sums_each_slot(step):
            self.shares.sum_gradients(self.net)
        self.course.learn_images(batch.index, scores, total)
        self.health.end_step()
        with self.resting(slots):
            update(self.optimizer, self._lr(step), settings.clip_value, settings.clip_norm)
        if self.ema is not None:
            self.ema.update_parameters(self.net)
        self.meter.add(slots, losses)
        self.step = step + 1
        if self._watched(step):
            self.log.record("health", self.step, {"epoch": self.step / self.steps_per_epoch, **self.health.read()})
        return self._log_losses() if self.step % settings.log_every == 0 else {}

    def _label_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        smoothing = self.settings.label_smoothing
        return F.cross_entropy(at_least_fp32(logits), targets, label_smoothing=smoothing, reduction="none")

    def _observers(self, scores: ImageScores) -> list[Observer]:
        if not self._watched(self.step):
            return self.course.observers(self.step, scores)
        return [*self.course.observers(self.step, scores, [self.health.on_gradients]), self.health]

    def _watched(self, step: int) -> bool:
        """Whether the health meter looks at this step; reading it waits for the device."""
        every = self.settings.health_every
        return every > 0 and step % every == 0

    @torch.no_grad()
    def _loss_of(self, arch: Arch, images: Tensor, targets: Tensor) -> Tensor:
        """The label loss of a subnet on a batch, for samplers that compare candidates; leaves no trace."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.settings.amp):
            logits = self.net(resize(images, self.net.space.resolution(arch)), arch)
        return self.shares.mean(self._label_loss(logits, targets).mean())

    def _enter(self, phase: Phase) -> None:
        """What a phase asks for at its start."""
        self.log.say(f"step {self.step}: phase {phase.name}")
        if phase.keep_teacher and not self.config["teacher"]:
            self.teacher = largest_of(self.net)
            self.shares.synchronise(self.teacher.network)
        if phase.sort_channels is not None:
            nets = members_of(self.net)
            averages = members_of(self.scored_net) if self.ema is not None else [None] * len(nets)
            for net, average in zip(nets, averages, strict=True):
                sort_training_state(net, self.optimizer, average, phase.sort_channels)
        if phase.fresh_optimizer:
            self.optimizer.state.clear()

    def _lr(self, step: int) -> float:
        return self.base_lr * self.course.lr(step)

    def _log_losses(self) -> dict[str, Any]:
        means = self.meter.read(self.step)
        if means:
            means["wait"] = self.waiting.read()
            lr = self._lr(self.step - 1)
            self.log.record("train", self.step, {"epoch": self.step / self.steps_per_epoch, "lr": lr, **means})
            return {**means, "wait": f"{means['wait']:.1f}%"}
        return {}

    def _report(self) -> None:
        """What samplers have learned, and whether loading is too slow, once an epoch."""
        if line := self.waiting.advice(self.data):
            self.log.say(f"note: {line}")
        values = self.course.report()
        if values:
            self.log.record("health", self.step, {"epoch": self.step / self.steps_per_epoch, **values})

    def _evaluate(self) -> None:
        self._refuse_divergence()
        settings = self.settings
        values = scores(
            self.scored_net,
            self.archs,
            self.data,
            ("val",),
            settings.calibration_images,
            settings.eval_images,
            self.ranks,
        )
        top1 = {name: values[f"{name}/val/top1"] for name in self.archs}
        record = {f"{name}/top1": value for name, value in top1.items()}
        record |= {f"{name}/loss": values[f"{name}/val/loss"] for name in self.archs}
        epoch = self.step / self.steps_per_epoch
        self.log.record("eval", self.step, {"epoch": epoch, **record})
        shown = "  ".join(f"{name} {value:.2f}" for name, value in top1.items())
        self.log.say(f"epoch {epoch:.4g}/{settings.epochs}  val top-1 %:  {shown}")
        self.net.train()
        mean = sum(top1.values()) / len(top1)
        self._watch_for_collapse(mean)
        if mean > self.best:
            self.best = mean
            self.ranks.once(lambda: checkpoint.save(self.folder / BEST, self._state()))

    def _watch_for_collapse(self, mean: float) -> None:
        if self.guard.collapsed(mean) and self.settings.collapse != "off":
            message = self.guard.message(mean, self.step, str(self.folder / BEST))
            if self.settings.collapse == "stop":
                raise UserError(message)
            self.log.warn(message)

    def _state(self) -> dict[str, Any]:
        return {
            "config": self.config,
            "space": self.net.space.config,
            "splits": self.split_record,
            "model": self.net.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "course": self.course.state_dict(),
            "teacher": self._own_teacher(),
            "step": self.step,
            "best": self.best,
            "guard": self.guard.state_dict(),
            "seconds": self._spent(),
        }

    def _spent(self) -> float:
        """Seconds of training, those before restarts included."""
        return self.seconds + max(0.0, time.perf_counter() - self._started)

    def _own_teacher(self) -> dict[str, Tensor] | None:
        """The weights of a teacher that this run made itself: they are nowhere else."""
        return None if self.teacher is None or self.config["teacher"] else self.teacher.network.state_dict()

    def _finish(self) -> dict[str, Any]:
        calibration_images = self.settings.calibration_images
        values = scores(self.scored_net, self.archs, self.data, self.splits, calibration_images, ranks=self.ranks)
        results = {
            "steps": self.step,
            "seconds": round(self._spent(), 1),
            "subnets": final_scores(self.log, self.net.space, self.archs, values, self.splits),
            "splits": dict(self.data.sizes),
            "calibration_images": calibration_images,
            "peak_memory_mb": peak_memory_mb(self.device),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        if self.ranks.first:
            curves(self.folder / METRICS, self.folder / "curves.png")
            health(self.folder / METRICS, self.folder / "health.png")
        return results
