"""The training loop of each process."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from threefold.cohorts.cohort import Case, CohortSpec
from threefold.cohorts.sample_cache import SampleCache
from threefold.core.batch import Batch
from threefold.errors import TrainingError
from threefold.experiment import AugmentationSpec, ClassificationSpec, Experiment
from threefold.images.augmentation import augment, draw_parameters
from threefold.networks.cpu import cpu_kernels
from threefold.run import RunFolder
from threefold.tasks.balancing import build_balancer
from threefold.tasks.build import build_network, build_tasks, task_weights
from threefold.tasks.task import Task
from threefold.training.checkpoints import load_checkpoint, load_network, save_checkpoint
from threefold.training.data import (
    Cases,
    TrainingOrder,
    make_loader,
    validation_batches,
)
from threefold.training.devices import Devices
from threefold.training.history import (
    Row,
    best_row,
    monitored,
    out_of_patience,
    progress_summary,
    write_history,
)
from threefold.training.module import Learner, StepLosses, non_finite_cases, step_total
from threefold.training.plan import Stage, starting_network
from threefold.training.progress import Remaining, TrainingProgress
from threefold.training.schedule import build_optimiser, learning_rate, set_learning_rate
from threefold.training.tensorboard import TensorboardLog
from threefold.training.validation import (
    gather_records,
    refuse_non_finite,
    validate_cases,
    validation_metrics,
)


@dataclass(frozen=True)
class TrainingContext:
    """The input of a training, sent to every process.

    Attributes:
        stage: the experiment and its tasks.
        cohort: meaning of the cohort.
        train, validation: the cases of the two parts.
        cache: where preprocessed cases come from.
        run: its folder; only the first process writes.
        progress: only the first process uses it.
    """

    stage: Stage
    cohort: CohortSpec
    train: tuple[Case, ...]
    validation: tuple[Case, ...]
    cache: SampleCache
    run: RunFolder
    progress: TrainingProgress

    @property
    def experiment(self) -> Experiment:
        """The experiment, as run."""
        return self.stage.experiment

    def __getstate__(self) -> dict[str, Any]:
        """Leave the tasks out: in another process a user's own classes are found anew, by name."""
        return {**vars(self), "stage": replace(self.stage, tasks=())}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Build the tasks again."""
        stage: Stage = state["stage"]
        tasks = build_tasks(stage.experiment, state["cohort"], state["train"])
        for name, value in {**state, "stage": replace(stage, tasks=tasks)}.items():
            object.__setattr__(self, name, value)


class Training:
    """One process's share of a training: its learner, its loaders, the history so far."""

    def __init__(self, context: TrainingContext, devices: Devices) -> None:
        """Build everything, and resume from last.ckpt if it exists."""
        spec = context.experiment.training
        self.context, self.devices = context, devices
        self.history: list[Row] = []
        checkpoint = self._last_checkpoint()
        self.learner = self._build_learner(resumed=checkpoint is not None)
        self.optimiser = build_optimiser(self.learner, spec.optimiser)
        if checkpoint is not None:
            load_network(self.learner.network, checkpoint["network"], context.run.last_checkpoint)
            self.learner.balancer.load_state_dict(checkpoint["balancer"])
            self.history = list(checkpoint["history"])
        if spec.compile:
            # Once for each batch size (the last batch is smaller): general shapes fail to compile.
            self.learner.network.compile(dynamic=False)
        module, self.stepper = devices.setup(self.learner, self.optimiser)
        self.module: nn.Module = module
        if checkpoint is not None:
            # After the setup, which moves the weights to the device: the optimiser's state follows them.
            self.optimiser.load_state_dict(checkpoint["optimiser"])
        workers, pin = context.experiment.data.workers, devices.device.type == "cuda"
        self.order = TrainingOrder(
            self._classes(),
            sampling=context.experiment.data.sampling,
            batch_size=spec.batch_size,
            accumulate=spec.accumulate,
            seed=spec.seed,
            rank=devices.global_rank,
            world=devices.world_size,
        )
        self.batches_per_step = self.order.batches_per_step()
        self.train_loader = make_loader(
            Cases(context.train, context.cache),
            self.order,
            context.cohort.all_targets,
            workers=workers,
            pin_memory=pin,
        )
        self.validation_loader = make_loader(
            Cases(context.validation, context.cache),
            validation_batches(
                len(context.validation),
                batch_size=spec.batch_size,
                rank=devices.global_rank,
                world=devices.world_size,
            ),
            context.cohort.all_targets,
            workers=workers,
            pin_memory=pin,
        )

    def run(self) -> None:
        """Train until the last epoch or early stopping, with a checkpoint after every epoch."""
        spec, progress = self.context.experiment.training, self.context.progress
        leads = self.devices.is_global_zero
        if leads:
            progress.start(spec.epochs, len(self.history))
        log = None
        if leads and spec.tensorboard:
            log = TensorboardLog(self.context.run.path / "tensorboard", len(self.history) + 1)
        self._prepare()
        remaining = Remaining()
        while len(self.history) < spec.epochs and not out_of_patience(self.history, spec.selection):
            with cpu_kernels(self.learner.network):
                self.history.append(self._epoch(len(self.history)))
            if leads:
                self._save()
                if log is not None:
                    log.write(self.history[-1])
                left = remaining.after_epoch(spec.epochs - len(self.history))
                progress.epoch(self.history[-1], f"validation_{spec.selection.metric}", left)
            # No process runs ahead into an epoch whose predecessor is not on disk.
            self.devices.barrier()

    def _prepare(self) -> None:
        """Fill a cache in memory before the first step, so that reader processes inherit it."""
        if self.context.cache.kind != "memory":
            return
        cases = (*self.context.train, *self.context.validation)
        for number, case in enumerate(cases, start=1):
            self.context.cache.get(case)
            if self.devices.is_global_zero:
                self.context.progress.step("preparing", number, len(cases))

    def _build_learner(self, *, resumed: bool) -> Learner:
        """Build the learner; what a resumed run started from is not looked at again, nor need it be there."""
        experiment = self.context.experiment
        tasks = self.context.stage.tasks
        torch.manual_seed(experiment.training.seed)
        return Learner(
            build_network(experiment, self.context.cohort, tasks)
            if resumed
            else self._starting_network(tasks),
            tasks,
            build_balancer(experiment.balancing, tuple(experiment.tasks)),
            bf16=experiment.training.precision == "bf16",
        )

    def _classes(self) -> list[int | None]:
        """Return each training case's class of the first classification task, for a balanced order."""
        for name in self.context.experiment.tasks_of(ClassificationSpec):
            target = self.context.stage.targets[name]
            return [case.targets.get(target) for case in self.context.train]
        return [case.label for case in self.context.train]

    def _starting_network(self, tasks: Sequence[Task]) -> nn.Module:
        network, report = starting_network(
            self.context.experiment, self.context.cohort, self.context.run, tasks
        )
        if report is not None and self.devices.is_global_zero:
            self.context.progress.say(report.as_text())
        return network

    def _epoch(self, epoch: int) -> Row:
        """Train and validate one epoch (0-based); return its row."""
        self.order.epoch = epoch
        clock = Clock(self.devices.device)
        weights = task_weights(self.context.experiment, epoch)
        row: Row = {"epoch": epoch + 1, **self._train(epoch, weights, clock)}
        with clock("validation"):
            row.update(self._validate(weights))
        row.update({f"weight_{name}": weight for name, weight in self._effective_weights(weights).items()})
        row.update(clock.row())
        selection = self.context.experiment.training.selection
        if math.isnan(monitored([row], selection)):
            raise TrainingError(
                f"training.selection.metric is {selection.metric}, which can't be estimated on the "
                f"{len(self.context.validation)} validation cases. Choose another metric or another split."
            )
        return row

    def _train(self, epoch: int, weights: Mapping[str, float], clock: Clock) -> Row:
        spec, names = self.context.experiment.training, self.learner.names
        self.learner.train()
        batches, repeats, counted = iter(self.train_loader), self.order.repeats(), self.order.counted()
        sums = torch.zeros(2, len(names), dtype=torch.float64)
        norms, rate = [], 0.0
        steps = len(self.batches_per_step)
        for step, count in enumerate(self.batches_per_step):
            rate = learning_rate(spec.optimiser, epoch * steps + step, steps, spec.epochs)
            set_learning_rate(self.optimiser, rate)
            with clock("data"):
                taken = [self._next(batches) for _ in range(count)]
            marks = [*islice(counted, count)], [*islice(repeats, count)]
            sums += self._accumulate(taken, *marks, (epoch, step), weights, clock)
            with clock("step"):
                norms.append(self._step([case for batch in taken for case in batch.case_ids]))
            if self.devices.is_global_zero:
                self.context.progress.step(f"epoch {epoch + 1}/{spec.epochs}", step + 1, steps)
        total, present = self._sum_over_ranks(sums)
        means = {
            name: value / number if number else math.nan
            for name, value, number in zip(names, total.tolist(), present.tolist(), strict=True)
        }
        return {
            "learning_rate": rate,
            "train_loss": sum(weights[name] * mean for name, mean in means.items() if not math.isnan(mean)),
            **{f"train_loss_{name}": mean for name, mean in means.items()},
            "gradient_norm": float(np.mean(norms)),
        }

    def _next(self, batches: Iterator[Any]) -> Batch:
        batch = next(batches)
        assert isinstance(batch, Batch)
        return batch.to(self.devices.device, non_blocking=True)

    def _accumulate(
        self,
        batches: Sequence[Batch],
        counted: Sequence[bool],
        repeats: Sequence[Sequence[int]],
        position: tuple[int, int],
        weights: Mapping[str, float],
        clock: Clock,
    ) -> Tensor:
        """Add the gradients of a step's batches; return (2, T): sums of the losses, and of their cases."""
        flags = [
            self.learner.present(batch).sum(dim=1) * counts
            for batch, counts in zip(batches, counted, strict=True)
        ]
        counts = self._sum_over_ranks(torch.stack(flags).sum(dim=0).float())  # (T,)
        sums = torch.zeros(2, len(self.learner.names), dtype=torch.float64)
        for number, batch in enumerate(batches):
            self._seed(*position, number)
            with clock("augmentation"):
                augmented = self._augment(batch, position[0], repeats[number])
            last = number == len(batches) - 1
            with self.devices.no_backward_sync(self.module, enabled=not last):
                with clock("forward"):
                    losses = StepLosses(**self.module(**augmented.as_plain()))
                    if not counted[number]:
                        losses = losses.uncounted()
                    self._refuse_non_finite(losses, batch.case_ids, position)
                    total = step_total(
                        self.learner,
                        losses,
                        counts,
                        weights=weights,
                        batches=len(batches),
                        world=self.devices.world_size,
                    )
                with clock("backward"):
                    self.devices.backward(total)
            sums += torch.stack([losses.sums().detach(), losses.present.sum(dim=1)]).double().cpu()
        return sums

    def _step(self, case_ids: Sequence[str]) -> float:
        """Take the optimiser step; return the norm of the gradient."""
        gradients = [p.grad for p in self.learner.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not bool(norm.isfinite()):
            raise TrainingError(
                f"the gradient is not finite although every loss is (cases {', '.join(case_ids)}). No step "
                "was taken with it. Lower training.optimiser.learning_rate or set clip_norm, then --resume."
            )
        limit = self.context.experiment.training.optimiser.clip_norm
        if limit is not None:
            torch.nn.utils.clip_grads_with_norm_(self.learner.parameters(), limit, norm)
        self.stepper.step()
        self.stepper.zero_grad()
        return float(norm)

    def _validate(self, weights: Mapping[str, float]) -> Row:
        records = validate_cases(self.learner, self.validation_loader, self.devices.device)
        joined = gather_records(records, self.devices.world_size)
        refuse_non_finite(joined, weights)
        metrics = validation_metrics(joined, self.learner, self.context.experiment, weights)
        return {f"validation_{name}": value for name, value in metrics.items()}

    def _effective_weights(self, weights: Mapping[str, float]) -> dict[str, float]:
        factors = self.learner.balancer.factors().tolist()
        return {n: weights[n] * factor for n, factor in zip(self.learner.names, factors, strict=True)}

    def _refuse_non_finite(
        self, losses: StepLosses, case_ids: tuple[str, ...], position: tuple[int, int]
    ) -> None:
        found = non_finite_cases(self.learner, losses, case_ids)
        if found:
            epoch, step = position
            raise TrainingError(
                f"the loss is not finite in epoch {epoch + 1}, step {step + 1} ({'; '.join(found)}). "
                "No step was taken with it. Look at these cases (`threefold check`), or lower "
                "training.optimiser.learning_rate; --resume continues from the last complete epoch."
            )

    def _seed(self, *place: int) -> None:
        """Seed what the network draws (stochastic depth) by epoch, step, batch and rank alone.

        A resumed run draws it then as an unbroken one does.
        """
        key = (self.context.experiment.training.seed, *place, self.devices.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))

    def _augment(self, batch: Batch, epoch: int, repeats: Sequence[int]) -> Batch:
        data = self.context.experiment.data
        if data.augmentation == AugmentationSpec():
            return batch
        parameters = draw_parameters(
            data.augmentation,
            batch.case_ids,
            seed=self.context.experiment.training.seed,
            epoch=epoch,
            dimensions=len(data.preprocessing.size),
            repeats=repeats,
        )
        return augment(batch, parameters)

    def _sum_over_ranks(self, value: Tensor) -> Tensor:
        if self.devices.world_size == 1:
            return value
        total = value.to(self.devices.device)
        torch.distributed.all_reduce(total)
        return total

    def _save(self) -> None:
        """Write best.ckpt if this epoch is the best, then last.ckpt, then metrics.csv and status.json.

        last.ckpt is what a resume trusts, and it holds the history. A kill before it is mended by training
        that epoch again, a kill after it by writing the two others from it. So best.ckpt may be an epoch
        ahead, and holds the history, too.
        """
        run, selection = self.context.run, self.context.experiment.training.selection
        network = self.learner.network.state_dict()
        epoch = len(self.history)
        if best_row(self.history, selection) == epoch - 1:
            best = {"epoch": epoch, "network": network, "history": self.history}
            save_checkpoint(run.best_checkpoint, best)
        save_checkpoint(
            run.last_checkpoint,
            {
                "epoch": epoch,
                "network": network,
                "balancer": self.learner.balancer.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "history": self.history,
            },
        )
        write_history(run.metrics, self.history)
        run.write_status(state="running", **progress_summary(self.history, self.context.experiment))

    def _last_checkpoint(self) -> dict[str, Any] | None:
        last = self.context.run.last_checkpoint
        return load_checkpoint(last) if last.is_file() else None


PHASES = ("data", "augmentation", "forward", "backward", "step", "validation")


class Clock:
    """Adds up wall-clock seconds per phase; on a GPU it waits for the work of a phase to be done."""

    def __init__(self, device: torch.device) -> None:
        self._wait = device.type == "cuda"
        self._seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Count the time of the block to a phase."""
        start = time.perf_counter()
        yield
        if self._wait:
            torch.cuda.synchronize()
        self._seconds[phase] += time.perf_counter() - start

    def row(self) -> dict[str, float]:
        """Return seconds_<phase> for every phase."""
        return {f"seconds_{phase}": self._seconds[phase] for phase in PHASES}
