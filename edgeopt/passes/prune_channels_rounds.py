"""Rounds of pruning: rank, choose, cut, and fine-tune before the next one."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgeopt.core.artifact import Artifact
from edgeopt.core.errors import StepError
from edgeopt.core.protocols import Context, fixed_batch
from edgeopt.formats import torch as torch_format
from edgeopt.passes.fine_tune_loop import Training
from edgeopt.passes.fine_tune_options import TrainingOptions
from edgeopt.passes.prune_channels_choice import Chosen, by_macs, by_ratios, matching
from edgeopt.passes.prune_channels_gradients import leave_gradients
from edgeopt.passes.prune_channels_latency import Latency
from edgeopt.passes.prune_channels_parts import Part
from edgeopt.passes.prune_channels_subject import Subject

if TYPE_CHECKING:
    from torch import nn

    from edgeopt.passes.prune_channels import PruneChannels


class Rounds:
    """One model on its way to the goal."""

    def __init__(self, options: PruneChannels, model: Artifact, ctx: Context) -> None:
        self.options, self.model, self.ctx = options, model, ctx
        self.record = torch_format.Record.read(model.path)
        self.training = options.fine_tune or TrainingOptions(epochs=1)
        self.whole = self._subject(torch_format.load(model.path))
        self.first = self.whole.sizes()
        self.ratios = options.ratios or ({"*": options.ratio} if options.ratio is not None else None)
        self.fixed: dict[str, str] = {}  # what stays, and why, of the subject that was ranked last
        self.parts: list[Part] = []
        self.ranked: Subject | None = None
        matching("keep", options.keep, list(self.first))
        matching("ratios", list(self.ratios or ()), list(self.first))

    def run(self) -> nn.Module:
        """The pruned module; notes what went, and what stays and why."""
        options, ctx, total = self.options, self.ctx, sum(self.whole.macs().values())
        latency = Latency(options.latency, self.model.signature, self.record.outputs, ctx) if options.latency is not None else None
        goal = options.macs if options.macs is not None else 0.5
        if latency is not None:
            goal = self._goal_for(latency)
        now, told, first = self._resumed()
        for number in range(first, options.steps + 1):
            done = number / options.steps
            wanted = goal**done * total / sum(now.macs().values())
            now = self._pruned(now, wanted, done, f"step {number} of {options.steps}: " if options.steps > 1 else "")
            if number < options.steps:
                told.append(self._tuned(now, number, total))
        before, after = self.first, now.sizes()
        macs = [sum(each.macs().values()) // (fixed_batch(self.model.signature) or torch_format.EXAMPLES) for each in (self.whole, now)]
        ctx.note("macs", macs)
        ctx.note("macs_kept", round(macs[1] / macs[0], 4))
        ctx.note("parameters", [sum(one.numel() for one in each.module.parameters()) for each in (self.whole, now)])
        ctx.note("channels", {name: [before[name][1], after[name][1]] for name in now.layers() if before[name][1] != after[name][1]})
        ctx.note("left_alone", self.fixed)
        if told:
            ctx.note("steps", told)
        if latency is not None:
            latency.confirm(self.whole.module, now.module)
        return now.module

    def _subject(self, module: nn.Module) -> Subject:
        given = torch_format.examples(module, self.record.inputs, self.record.outputs)
        return Subject(module, given, lambda value: list(torch_format.named(value, self.record.outputs).values()))

    def _rank(self, now: Subject) -> None:
        """Find the parts of a subject that may shrink, least important units first."""
        options = self.options
        if self.ranked is now:
            return
        if options.importance == "taylor":
            leave_gradients(now.module, self.record, self.training, self.ctx)
        self.fixed, self.parts, self.ranked = dict.fromkeys(matching("keep", options.keep, list(self.first)), "named under `keep`"), [], now
        for part in now.parts(options.importance, options.round_to):
            held = next((name for name in part.outward if name in self.fixed), None)
            if reason := part.refusal or (f"tied to {held}" if held else ""):
                self.fixed.setdefault(part.name, reason)
            else:
                self.parts.append(part)
        followed = {name for part in self.parts for name in part.outward}
        for name in now.layers():
            if name not in followed:
                self.fixed.setdefault(name, "what reads its channels cannot be followed")

    def _pruned(self, now: Subject, goal: float, done: float, label: str = "") -> Subject:
        """A pruned copy. `goal` is the share of the MACs of now, `done` the share of ratios that is due."""
        self._rank(now)
        while True:
            copy = now.copy()
            self.ctx.progress(0, 0, f"{label}removing channels")
            problem = copy.cut(self._chosen(now, goal, done))
            if not problem:
                return copy
            # Something in the model counts on a size: find the channels that can not even be cut alone.
            able = []
            for index, part in enumerate(self.parts):
                self.ctx.progress(index, len(self.parts), f"{label}trying {part.name}")
                if reason := now.copy().cut([(part, part.steps()[0][2])]):
                    self.fixed[part.name] = reason
                else:
                    able.append(part)
            if len(able) == len(self.parts):
                raise StepError(f"the model cannot be pruned: {problem}", remedy="name the layers that must stay under `keep`")
            self.parts = able

    def _chosen(self, now: Subject, goal: float, done: float) -> Chosen:
        if self.ratios is not None:
            return by_ratios(self.ratios, self.parts, self.first, now.sizes(), done, self.fixed)
        return by_macs(goal, self.parts, now.macs(), now.sizes(), self.fixed) if goal < 1 else []

    def _goal_for(self, latency: Latency) -> float:
        """The share of the MACs at which the wanted latency is met; measured once, whoever is killed when."""
        kept = self.ctx.checkpoints / "goal.json" if self.ctx.checkpoints else None
        if kept and kept.is_file():
            return float(json.loads(kept.read_text()))
        goal = latency.search(self.whole.module, lambda share: self._pruned(self.whole, share, 1.0).module)
        if kept:
            kept.parent.mkdir(parents=True, exist_ok=True)
            part = kept.with_suffix(".part")
            part.write_text(json.dumps(goal))
            part.replace(kept)
        return goal

    def _resumed(self) -> tuple[Subject, list[dict[str, Any]], int]:
        """The model after the last step that was fine-tuned to its end, what is told of the steps so far, and the next step."""
        told: list[dict[str, Any]] = []
        now = self.whole
        while self.ctx.checkpoints and (folder := self.ctx.checkpoints / f"step-{len(told) + 1}").is_dir():
            told.append(json.loads((folder / "told.json").read_text()))
            now = self._subject(torch_format.load(folder / torch_format.MAIN))
        return now, told, len(told) + 1

    def _tuned(self, now: Subject, number: int, total: int) -> dict[str, Any]:
        """Fine-tune in place, leave a checkpoint of it, and tell how it went."""
        notes: dict[str, Any] = {}
        folder = self.ctx.checkpoints
        told = {"macs_kept": round(sum(now.macs().values()) / total, 4)}
        own = replace(self.ctx, checkpoints=folder / f"training-{number}" if folder else None, note=notes.__setitem__)
        Training(self.training, now.module, self.model, own).run()
        told |= {name: notes[name] for name in ("loss", "losses", "tune_losses", "best_epoch")}
        if folder:
            part = folder / f".step-{number}"
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            torch_format.save(now.module, part, self.model.path)
            (part / "told.json").write_text(json.dumps(told))
            part.rename(folder / f"step-{number}")
            shutil.rmtree(folder / f"training-{number}", ignore_errors=True)
        return told
