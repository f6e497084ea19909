"""Lightning: a Policy in a LightningModule that someone wrote.

    tuning = Tuning(task.model, Policy(probe_epochs=1, ema=0.999), receipt=receipt)
    # in the module: configure_optimizers returns torch.optim.AdamW(tuning.groups(lr=1e-3))
    lightning.Trainer(callbacks=[Follow(tuning)]).fit(task, loader)

`Tuning` is that of `regraft.tuning.torch`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

from lightning.pytorch.callbacks import Callback

from regraft.errors import TargetError
from regraft.targets._torch_arrays import to_numpy
from regraft.transfer import fingerprint
from regraft.tuning.receipts import TuningReceipt, beside_training
from regraft.tuning.torch import Tuning


class Follow(Callback):
    """Carries a Tuning out in Lightning's Trainer; `receipt` is there after the fit.

    Validation sees the moving average where there is one. Lightning's own checkpoints keep it, and
    the lineage of the model where the Tuning has the receipt of its load: `regraft trace` reads it.

    It ends the Tuning when the whole fit ends, after every callback has had its turn at the end of
    training, and raises `VerificationFailed` where what was frozen moved. Where the policy measures
    statistics, it does so on the training batches.

    **Arguments:**

    - `finish`: whether to end the Tuning with the fit.
    - `inputs`: what the model is given of a batch: a tensor, or a dict of keywords. By default the
      first part of a pair, or all of it.
    """

    def __init__(
        self,
        tuning: Tuning,
        *,
        finish: bool = True,
        inputs: Callable[[Any], Any] = lambda batch: batch,
    ) -> None:
        self.tuning = tuning
        self.receipt: TuningReceipt | None = None
        self._finish, self._inputs = finish, inputs
        self._kept: dict[str, Any] = {}
        self._averaged = ExitStack()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.world_size > 1 and len(self.tuning.course.steps) > 1:
            raise TargetError(
                "the policy",
                found=f"tensors that start to learn later, in {trainer.world_size} processes",
                expected="what learns to stay the same, as gradients are shared by what learned "
                "at the start",
                hint="fit twice: a linear probe, then all of it",
            )
        if self.tuning.adapts and not self._kept:
            self.tuning.adapt(self._batches(trainer))
        self.tuning.begin(*trainer.optimizers, resuming=bool(self._kept))
        if self._kept:
            self.tuning.resume(self._kept)
            self._kept = {}

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.tuning.epoch(trainer.current_epoch)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self._averaged.enter_context(self.tuning.averaged())

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self._averaged.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._averaged.close()
        self.tuning.release()

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        if self._finish:
            self.receipt = self.tuning.finish(self._batches(trainer)).check()

    def _batches(self, trainer: Any) -> Iterator[Any]:
        return (self._inputs(batch) for batch in trainer.train_dataloader)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        receipt = self.tuning.loading
        if receipt is not None and receipt.keeper is not None:
            held = checkpoint["state_dict"].items()
            hashes = {n: fingerprint(to_numpy(t)) for n, t in held if hasattr(t, "shape")}
            with beside_training("a checkpoint"):
                checkpoint |= receipt.lineage_entries(hashes, self.tuning.trained)

    def state_dict(self) -> dict[str, Any]:
        return self.tuning.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._kept = state_dict
