"""PyTorch models, trained by Lightning."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from regraft.tuning import Epoch, Settings
from regraft.tuning.data import Data

EXTRA = "tune"


class _Task(lightning.LightningModule):
    """The model with its loss. Layers that are frozen whole run in evaluation mode."""

    def __init__(self, model: torch.nn.Module, data: Data, settings: Settings) -> None:
        super().__init__()
        self.model = model
        self._settings = settings
        self._classes = data.classification
        self._probabilities = self._classes and _gives_probabilities(model, data)
        self.curve: list[Epoch] = []

    def _loss(self, x: Any, y: Any) -> tuple[Any, Any]:
        out = self.model(x)
        out = getattr(out, "logits", out)
        if not self._classes:
            return functional.mse_loss(out.reshape(y.shape), y), out
        if self._probabilities:
            return functional.nll_loss(out.clamp_min(1e-7).log(), y), out
        return functional.cross_entropy(out, y), out

    def training_step(self, batch: Any, index: int) -> Any:
        loss, _ = self._loss(*batch)
        self.log("loss", loss, on_step=False, on_epoch=True, batch_size=len(batch[0]))
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        loss, out = self._loss(*batch)
        self.log("val_loss", loss, batch_size=len(batch[0]))
        if self._classes:
            right = (out.argmax(1) == batch[1]).float().mean()
            self.log("accuracy", right, batch_size=len(batch[0]))

    def on_train_epoch_start(self) -> None:
        for module in self.model.modules():
            own = list(module.parameters(recurse=False))
            if own and not any(p.requires_grad for p in own):
                module.eval()  # else a frozen BatchNorm would still move its statistics

    def configure_optimizers(self) -> Any:
        learning = [p for p in self.model.parameters() if p.requires_grad]
        s = self._settings
        return torch.optim.AdamW(learning, lr=s.lr, weight_decay=s.weight_decay)


class _Curve(Callback):
    """Gathers the learning curve. Lightning ends an epoch of training after its validation."""

    def __init__(self, curve: list[Epoch], each: Callable[[Epoch], None]) -> None:
        self._curve, self._each = curve, each

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        found = {name: float(value) for name, value in trainer.callback_metrics.items()}
        epoch = Epoch(
            len(self._curve) + 1, found["loss"], found.get("val_loss"), found.get("accuracy")
        )
        self._curve.append(epoch)
        self._each(epoch)


def fit(
    model: torch.nn.Module, data: Data, settings: Settings, each: Callable[[Epoch], None]
) -> list[Epoch]:
    """Trains with AdamW; cross-entropy for class numbers, squared error for floats."""
    curve: list[Epoch] = []
    flags = [(module, module.training) for module in model.modules()]
    device = next(model.parameters()).device
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), _quiet():
        # Advice on workers and logging frequency, of no use for data held in memory.
        warnings.filterwarnings("ignore", module="lightning")
        lightning.seed_everything(settings.seed, verbose=False)
        task = _Task(model, data, settings)
        monitor = "loss" if data.x_val is None else "val_loss"
        best = ModelCheckpoint(folder, monitor=monitor, save_weights_only=True)
        callbacks: list[Callback] = [best, _Curve(curve, each)]
        if settings.patience is not None:
            callbacks.append(EarlyStopping(monitor, patience=settings.patience, check_finite=True))
        trainer = lightning.Trainer(
            max_epochs=settings.epochs,
            callbacks=callbacks,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            devices=1,
            default_root_dir=folder,
        )
        model.train()
        trainer.fit(task, _loader(data.x, data.y, settings, True), _validation(data, settings))
        if best.best_model_path and Path(best.best_model_path).exists():
            state = torch.load(best.best_model_path, map_location="cpu", weights_only=True)
            task.load_state_dict(state["state_dict"])
    model.to(device)
    for module, flag in flags:
        module.training = flag
    return curve


def _loader(x: Any, y: Any, settings: Settings, shuffle: bool) -> DataLoader[Any]:
    answers = torch.as_tensor(y)
    answers = answers.long() if y.dtype.kind in "iu" else answers.float()
    generator = torch.Generator().manual_seed(settings.seed)
    samples = TensorDataset(torch.as_tensor(x), answers)
    # A last batch of one sample would break BatchNorm.
    odd = shuffle and len(x) % settings.batch_size == 1 and len(x) > settings.batch_size
    return DataLoader(
        samples, settings.batch_size, shuffle=shuffle, generator=generator, drop_last=odd
    )


def _validation(data: Data, settings: Settings) -> DataLoader[Any] | None:
    if data.x_val is None:
        return None
    return _loader(data.x_val, data.y_val, settings, False)


def _gives_probabilities(model: torch.nn.Module, data: Data) -> bool:
    """Whether the model ends in a softmax, seen from what it gives for one sample."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    with torch.no_grad():
        first = next(model.parameters())
        out = model(torch.as_tensor(data.x[:2]).to(first.device))
        out = getattr(out, "logits", out)
    for module, flag in flags:
        module.training = flag
    return bool((out >= 0).all() and ((out.sum(-1) - 1).abs() < 1e-4).all())


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
