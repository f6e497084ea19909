"""PyTorch models, trained by Lightning; one process, or as many as `torchrun` started."""

from __future__ import annotations

import logging
import tempfile
import warnings
from dataclasses import asdict
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch.nn import functional

from regraft.targets import torch as torch_target
from regraft.targets._torch_arrays import to_numpy
from regraft.tuning import Epoch, Job, Outcome, Settings, best_of, processes, runs, seeds, stopped
from regraft.tuning.data import Data
from regraft.tuning.lightning import Follow
from regraft.tuning.metrics import measured, probabilities
from regraft.tuning.torch import Tuning
from regraft.tuning.torch_data import in_order, measuring, training
from regraft.tuning.torch_rates import rate_of

EXTRA = "tune"
_PRECISION: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


def fit(job: Job) -> Outcome:
    """Trains with AdamW; cross-entropy for class numbers, squared error for floats."""
    model, settings = job.model, job.settings
    flags = [(module, module.training) for module in model.modules()]
    device = next(model.parameters()).device
    world, rank = processes.count(), processes.rank()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), _quiet():
        # Advice on workers and logging frequency, of no use for data held in memory.
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*optimizer.step.*")
        task = _Task(job)
        progress = _Progress(job, task)
        progress.find()
        if not progress.found and job.policy.batchnorm == "adapt":
            task.tuning.adapt(measuring(job.data.x, job.data.y, settings))
        task.lr = progress.lr or rate_of(job, task.outputs, task.loss)
        if not stopped(progress.curve, settings):
            trainer = lightning.Trainer(
                max_epochs=settings.epochs,
                callbacks=[Follow(task.tuning, finish=False), progress],
                precision=_PRECISION[settings.precision],
                accumulate_grad_batches=settings.accumulate,
                gradient_clip_val=settings.clip or None,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                num_sanity_val_steps=0,
                default_root_dir=folder,
                use_distributed_sampler=False,
                **_processes(world),
            )
            model.train()
            loader = training(job.data.x, job.data.y, settings, rank, world)
            trainer.fit(task, loader, _validation(job.data, settings), ckpt_path=progress.found)
        else:
            progress.restore()
        model.to(device)
        task.tuning.keep(progress.best)
        receipt = task.tuning.finish(measuring(job.data.x, job.data.y, settings)).check()
    for module, flag in flags:
        module.training = flag
    return Outcome(progress.curve, task.tuning.course, receipt, task.lr)


class _Task(lightning.LightningModule):
    """The model with its loss."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.model, self.settings = job.model, job.settings
        self.tuning = Tuning(job.model, job.policy, receipt=job.loading, reference=job.reference)
        self.lr = 0.0
        self.found: dict[str, float] = {}
        self._classes = job.data.classification
        first = torch_target.run(job.model, job.data.first(2))
        logits = first.get("logits", next(iter(first.values())))
        self._probabilities = self._classes and probabilities(logits)
        self._seen: list[tuple[Any, Any, float]] = []

    def outputs(self, x: Any) -> Any:
        out = self.model(**x) if isinstance(x, dict) else self.model(x)
        return getattr(out, "logits", out)

    def loss(self, out: Any, y: Any) -> Any:
        if not self._classes:
            return functional.mse_loss(out.reshape(y.shape), y)
        if self._probabilities:
            return functional.nll_loss(out.clamp_min(1e-7).log(), y)
        return functional.cross_entropy(out, y)

    def training_step(self, batch: Any, index: int) -> Any:
        x, y = batch
        loss = self.loss(self.outputs(x), y)
        self.log("loss", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(y))
        return loss * self._weight(len(y), index)

    def _weight(self, count: int, index: int) -> float:
        """Of a batch among those that are added up, so that every sample counts the same: the last
        batch may be smaller, and the last sum of fewer. Lightning divides by `accumulate`."""
        size, together = self.settings.batch_size, self.settings.accumulate
        loader: Any = self.trainer.train_dataloader
        samples = min(len(loader.sampler), len(loader) * size)
        first = index // together * together * size
        return count * together / (min(first + together * size, samples) - first)

    def validation_step(self, batch: Any, index: int) -> None:
        """Every process sees all of it, so that all come to the same numbers."""
        x, y = batch
        out = self.outputs(x).float()
        self._seen.append((to_numpy(out), to_numpy(y), float(self.loss(out, y)) * len(y)))

    def on_validation_epoch_end(self) -> None:
        outs, answers = (torch.cat([torch.as_tensor(row[i]) for row in self._seen]) for i in (0, 1))
        total = sum(row[2] for row in self._seen)
        self.found = {"val_loss": total / len(answers)}
        self.found |= measured(outs.numpy(), answers.numpy(), classification=self._classes)
        self._seen.clear()

    def configure_optimizers(self) -> Any:
        settings = self.settings
        groups = self.tuning.groups(self.lr, settings.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=self.lr)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: settings.share(step, steps)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


class _Progress(Callback):
    """The learning curve, the best epoch's values, and the checkpoint from which a run goes on.

    Lightning ends an epoch of training after its validation.
    """

    def __init__(self, job: Job, task: _Task) -> None:
        self._job, self._task = job, task
        self.curve: list[Epoch] = []
        self.best: dict[str, Any] = {}
        self.found: str | None = None
        self.lr = 0.0
        self._identity = runs.identity(job, task.tuning.course, task.tuning.read)
        self._path = job.folder / "last.ckpt" if job.folder else None

    def find(self) -> None:
        """Looks for a checkpoint of this run. **Raises** `StalePlan` for another run's."""
        if self._path is None or not self._path.exists():
            return
        with runs.reading(self._path):
            kept = torch.load(self._path, map_location="cpu", weights_only=True, mmap=True)
            kept = kept["callbacks"][self.state_key]
            runs.same(kept["identity"], self._identity, str(self._path))
            self.load_state_dict(kept)
        self.found = str(self._path)
        for epoch in self.curve:
            self._job.each(epoch)

    def restore(self) -> None:
        """For a run that had ended: what its checkpoint says of the start."""
        kept = torch.load(str(self.found), map_location="cpu", weights_only=True)
        self._task.load_state_dict(kept["state_dict"])
        tuning = self._task.tuning
        tuning.begin(resuming=True)
        key = next(key for key in kept["callbacks"] if key.startswith("Follow"))
        tuning.resume(kept["callbacks"][key])
        tuning.epoch(self.curve[-1].number - 1)

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        # Each step has a seed of its own: between them, loaders draw at times of their choosing.
        place = (trainer.current_epoch, 0, trainer.global_rank, batch_idx)
        seed = seeds.derived(self._job.settings.seed, *place)
        seeds.set_all(seed)
        torch.manual_seed(seed)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        loss = float(trainer.callback_metrics["loss"])
        self.curve.append(Epoch(len(self.curve) + 1, loss, **self._task.found))
        if best_of(self.curve) == self.curve[-1].number:
            self.best = self._task.tuning.moving()
        trainer.should_stop = stopped(self.curve, self._job.settings)
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._path.with_suffix(".part")
            trainer.save_checkpoint(temporary)
            if trainer.is_global_zero:
                runs.replaced(temporary, self._path)
        self._job.each(self.curve[-1])

    def state_dict(self) -> dict[str, Any]:
        curve = [asdict(epoch) for epoch in self.curve]
        return {"curve": curve, "best": self.best, "lr": self._task.lr, "identity": self._identity}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.curve = [Epoch(**row) for row in state_dict["curve"]]
        self.best, self.lr = state_dict["best"], state_dict["lr"]


def _processes(world: int) -> dict[str, Any]:
    """How Lightning is told of what `torchrun` started."""
    if world == 1:
        return {"devices": 1}
    local = processes.count_here()
    strategy = "ddp_find_unused_parameters_true"
    return {"devices": local, "num_nodes": world // local, "strategy": strategy}


def _validation(data: Data, settings: Settings) -> Any:
    return None if data.x_val is None else in_order(data.x_val, data.y_val, settings)


class _quiet:
    """Keeps Lightning's banners out of the output."""

    _LOGGERS = ("lightning.pytorch", "lightning.fabric")

    def __enter__(self) -> None:
        self._levels = [logging.getLogger(name).level for name in self._LOGGERS]
        for name in self._LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        for name, level in zip(self._LOGGERS, self._levels, strict=True):
            logging.getLogger(name).setLevel(level)
