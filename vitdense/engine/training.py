"""Training: one explicit, step-based loop on Lightning Fabric, resumable bit for bit."""

import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric

from vitdense import checkpoint, pictures
from vitdense.build import build_model
from vitdense.contracts import Batch
from vitdense.data.loader import Batches, train_loader
from vitdense.engine.averages import Averages
from vitdense.engine.evaluation import evaluate, to_device
from vitdense.engine.gradients import learn_step
from vitdense.engine.journal import Journal
from vitdense.engine.launch import any_process, denormals_flushed, launch, peak_bytes, share_batchnorm, step_seed
from vitdense.engine.saved import check_sampler, find_checkpoint, sampler_state
from vitdense.engine.signals import StopOnSignal
from vitdense.engine.teaching import Teacher
from vitdense.engine.zero_shot import check_zero_shot
from vitdense.errors import DataError, SaveError, TrainingError
from vitdense.loading import load_state
from vitdense.optim import build_optimizer, describe, parameter_groups, set_rate
from vitdense.recipe import Recipe

AUDITED_MASKS = 300
"""How many masks the audit before step 0 decodes; tools/check.py reads them all."""


@dataclass(frozen=True)
class FitResult:
    """How a run ended: the last step taken, its last metrics, whether a signal stopped it, and what it cost."""

    step: int
    metrics: dict[str, float]
    stopped: bool
    run_dir: Path
    seconds: dict[str, float] = field(default_factory=dict)
    peak_bytes: int = 0


def fit(
    recipe: Recipe, *, resume: str | None = None, stop_after: int | None = None, eval_batches: int | None = None
) -> FitResult:
    """Train as the recipe says. `resume`: "auto" or a checkpoint; the last two cut a run short, for rehearsals."""
    fabric = launch(recipe.engine, every_gradient=recipe.head.reads_all())
    with denormals_flushed():
        training = Training(fabric, recipe, resume=resume, eval_batches=eval_batches)
        return training.run(min(recipe.schedule.steps, stop_after or recipe.schedule.steps))


class Training:
    """One run: what it is made of, and the loop over it."""

    def __init__(self, fabric: Fabric, recipe: Recipe, *, resume: str | None, eval_batches: int | None) -> None:
        self.fabric = fabric
        self.eval_batches = eval_batches
        self.metrics: dict[str, float] = {}
        self.found = find_checkpoint(fabric, recipe, resume)
        self.train_samples, self.val_samples = recipe.data.build("train"), recipe.data.build("val")
        recipe = recipe.model_copy(update={"head": recipe.head.for_things(self.train_samples.things)})
        recipe.metric.build(self.val_samples)  # one that doesn't fit the data says so now
        if self.found is None:
            self._audit(recipe)
        torch.manual_seed(recipe.engine.seed)
        seen = self.train_samples
        self.plain = build_model(recipe, seen.classes, seen.palette, seen.category_ids, load_weights=self.found is None)
        check_zero_shot(recipe, self.plain)
        self.recipe = recipe.model_copy(update={"backbone": self.plain.backbone.config})
        self.teacher = None if recipe.teacher is None else Teacher(recipe.teacher, fabric, self.plain.head)
        self.groups = parameter_groups(self.plain, self.plain.backbone, recipe.optim)
        self._set_up()
        self.step = self._restore()

    # ------------------------------------------------------------ before the first step

    def _audit(self, recipe: Recipe) -> None:
        """Look at the files before any weight moves; every process raises the same faults."""
        faults: list[str] = []
        if self.fabric.is_global_zero:
            for samples in (self.train_samples, self.val_samples):
                faults += samples.audit(limit=AUDITED_MASKS)
        faults = self.fabric.broadcast(faults)
        if not faults:
            return
        message = "the data set has faults\n" + "\n".join(f"  {fault}" for fault in faults)
        if recipe.data.on_bad_sample == "stop":
            raise DataError(f"{message}\n  data.on_bad_sample=skip trains without what can't be read")
        self.fabric.print(f"warning: {message}", file=sys.stderr)

    def _set_up(self) -> None:
        """Averaged copy, distributed wrapping, compilation."""
        engine = self.recipe.engine
        if engine.sync_batchnorm and self.fabric.world_size > 1:
            self.plain = share_batchnorm(self.fabric, self.plain)
        self.averaged: Any = None
        if engine.ema is not None:
            from timm.utils.model_ema import ModelEmaV3

            self.averaged = ModelEmaV3(self.plain, decay=engine.ema, use_warmup=True, device=self.fabric.device)
        model: Any = torch.compile(self.plain) if engine.compile else self.plain
        model, optimizer = self.fabric.setup(model, build_optimizer(self.groups, self.recipe.optim))
        self.model, self.optimizer = model, optimizer

    def _restore(self) -> int:
        """Weights, averages and optimizer of the checkpoint; the step to go on from."""
        if self.found is None:
            return 0
        load_state(self.plain, self.found, averaged=False)
        if self.averaged is not None:
            load_state(self.averaged.module, self.found, averaged=True)
        state = self.found.train_state()
        check_sampler(self.found, state, self.recipe)
        self.optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.metrics = dict(self.found.facts["metrics"])
        return self.found.step

    # ------------------------------------------------------------ the loop

    def run(self, until: int) -> FitResult:
        """Steps up to `until`, with evaluation, checkpoints and records on the way."""
        engine = self.recipe.engine
        loaded = self._batches(until)
        batches = self._ready(loaded)
        self.seconds: dict[str, list[float]] = {"step": [], "evaluation": [], "save": []}
        total, stopped = self.recipe.schedule.steps, False
        with (
            Journal(self.recipe.run_dir, start=self.step, total=total, active=self._first) as self.journal,
            StopOnSignal() as stop,
            closing(loaded),
        ):
            self._introduce()
            if self.step >= until:
                self.journal.say(f"nothing to do: step {self.step} of {until} is taken")
            self.window = Averages(self.step)
            while self.step < until and not stopped:
                self._train_step(batches)
                stopped = any_process(self.fabric, stop.asked) and self.step < until
                last = stopped or self.step == until
                evaluate_now = self.step % engine.eval_every == 0 or (self.step == until and not stopped)
                save_now = evaluate_now or last or self.step % engine.save_every == 0
                if save_now or self.step % engine.log_every == 0:
                    self._log()
                if evaluate_now:
                    self._evaluate()
                if save_now:
                    self._save(required=last, evaluated=evaluate_now)
                    self.window = Averages(self.step)
        seconds = {name: min(values) for name, values in self.seconds.items() if values}
        return FitResult(self.step, self.metrics, stopped, self.recipe.run_dir, seconds, peak_bytes())

    @property
    def _first(self) -> bool:
        return bool(self.fabric.is_global_zero)

    def _batches(self, until: int) -> Batches:
        data, engine = self.recipe.data, self.recipe.engine
        return train_loader(
            self.train_samples,
            data,
            seed=engine.seed,
            start_step=self.step,
            num_steps=until - self.step,
            accumulate=engine.accumulate,
            rank=self.fabric.global_rank,
            world_size=self.fabric.world_size,
            tokenize=self.recipe.head.tokenizer(),
        )

    def _train_step(self, batches: Iterator[Batch]) -> None:
        """One optimizer step. Its random numbers depend on (seed, step, process) alone, so a resume repeats them."""
        engine, start = self.recipe.engine, time.perf_counter()
        torch.manual_seed(step_seed(engine.seed, self.step, self.fabric.global_rank))
        self.model.train()
        rate = set_rate(self.optimizer, self.recipe.optim, self.recipe.schedule, self.step)
        parts, head = engine.accumulate, self.plain.head
        ids = learn_step(self.fabric, self.model, head, batches, parts, self.window, compiled=engine.compile)
        if engine.clip:
            self.fabric.clip_gradients(self.model, self.optimizer, max_norm=engine.clip, error_if_nonfinite=False)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.averaged is not None:
            self.averaged.update(self.plain, step=self.step)
        if engine.log_samples:
            self.journal.samples(self.step, ids)
        self.rate = rate
        self.journal.advance(self.step)
        self.seconds["step"].append(time.perf_counter() - start)

    def _ready(self, batches: Batches) -> Iterator[Batch]:
        """Batches on the device, with how far training is and what the teacher makes of them."""
        first, parts, total = self.step, self.recipe.engine.accumulate, self.recipe.schedule.steps
        for number, batch in enumerate(batches):
            batch["progress"] = torch.tensor((first + number // parts) / total)
            moved = to_device(batch, self.fabric.device)
            yield moved if self.teacher is None else self.teacher.teach(moved)

    def _log(self) -> None:
        """Write the window down and start the next one."""
        window = self.window
        taken, elapsed = self.step - window.start, window.seconds()
        if not taken:
            return
        values = window.read(self.step)
        values |= {"lr": self.rate, "pictures_per_second": taken * self.recipe.data.batch_size / elapsed}
        if window.skipped:
            values["skipped"] = float(window.skipped)
        total = self.recipe.schedule.steps
        self.journal.train(self.step, total, values, (total - self.step) * elapsed / taken)
        self.window = Averages(self.step)

    def _introduce(self) -> None:
        samples, backbone = self.train_samples, self.plain.backbone
        self.journal.environment({"recipe": self.recipe.name, "processes": self.fabric.world_size})
        if self._first:
            text = self.recipe.to_yaml()
            (self.recipe.run_dir / checkpoint.RECIPE).write_text(text, encoding="utf-8")
        self.journal.say(
            f"{self.recipe.name}: {len(samples)} pictures to train on, {len(self.val_samples)} to validate,"
            f"{f' {len(samples.classes)} classes;' if samples.classes else ''} {describe(self.groups)};"
            f" {self.fabric.device}, {self.fabric.world_size} process(es) -> {self.recipe.run_dir}"
        )
        if backbone.load_report is not None:
            self.journal.say(f"weights: {backbone.load_report}")
        if self.found is not None:
            self.journal.say(f"resumed from {self.found.folder}")

    # ------------------------------------------------------------ evaluation and checkpoints

    def _evaluate(self) -> None:
        start = time.perf_counter()
        module = self.plain if self.averaged is None else self.averaged.module
        if self.fabric.world_size > 1:
            for buffer in module.buffers():  # batch-norm statistics drift apart between processes
                torch.distributed.broadcast(buffer, src=0)
        panels: list[Any] = []
        limit, track = self.eval_batches, self.journal.track
        self.metrics, _ = evaluate(
            self.fabric, module, self.val_samples, self.recipe, limit=limit, panels=panels, track=track
        )
        seconds = time.perf_counter() - start
        self.seconds["evaluation"].append(seconds)
        self.journal.evaluation(self.step, self.metrics, seconds)
        if panels:
            self.journal.picture(self.step, pictures.contact_sheet(panels, columns=2 if self.plain.classes else 1))

    def _save(self, *, required: bool, evaluated: bool) -> None:
        """A checkpoint, written by the first process; a failure is told and outlived unless it is the last one."""
        if self._first:
            start = time.perf_counter()
            try:
                checkpoint.save(self.recipe.run_dir, self.step, self._writers(), self._facts(evaluated))
                checkpoint.prune(self.recipe.run_dir, self.recipe.engine.keep, next(iter(self.metrics), None))
            except SaveError as error:
                if required:
                    raise TrainingError(f"the last checkpoint is lost: {error}") from error
                self.journal.say(f"warning: {error}; training goes on, earlier checkpoints are untouched")
            self.seconds["save"].append(time.perf_counter() - start)
        self.fabric.barrier()

    def _writers(self) -> dict[str, Any]:
        sampler = sampler_state(self.recipe, self.step, len(self.train_samples))
        state = {"optimizer": self.optimizer.state_dict(), "sampler": sampler}
        state["precision"] = self.fabric.strategy.precision.state_dict()
        writers = {checkpoint.WEIGHTS: checkpoint.write_tensors(self.plain.state_dict())}
        if self.averaged is not None:
            writers[checkpoint.AVERAGED] = checkpoint.write_tensors(self.averaged.module.state_dict())
        writers[checkpoint.TRAIN_STATE] = checkpoint.write_state(state)
        writers[checkpoint.RECIPE] = checkpoint.write_text(self.recipe.to_yaml())
        return writers

    def _facts(self, evaluated: bool) -> dict[str, Any]:
        """What the manifest says; metrics only where this very step was evaluated."""
        samples, metrics = self.train_samples, self.metrics if evaluated else {}
        named = {"classes": list(samples.classes), "category_ids": list(samples.category_ids)}
        return {"metrics": metrics, **named, "palette": [list(colour) for colour in samples.palette]}
