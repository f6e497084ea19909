"""Hugging Face: a Policy in transformers' `Trainer`.

    tuning = Tuning(model, Policy(freeze_depth=4, layer_decay=0.9), receipt=receipt)
    optimizer = torch.optim.AdamW(tuning.groups(lr=5e-5, weight_decay=0.01))
    follow = Follow(tuning)
    Trainer(
        model, arguments, train_dataset=…, optimizers=(optimizer, None), callbacks=[follow]
    ).train()
    print(follow.receipt)

`Tuning` is that of `regraft.tuning.torch`; the optimizer is given, as `Trainer`'s own would know
nothing of rates. Under several processes a policy must not let more learn later.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from regraft.errors import TargetError
from regraft.tuning.receipts import TuningReceipt, beside_training
from regraft.tuning.torch import Tuning

_KEPT = "regraft_tuning.pt"


class Follow(TrainerCallback):
    """Carries a Tuning out in transformers' Trainer; `receipt` is there after `train()`.

    Evaluation and saved checkpoints have the values of the moment; the moving average, where there
    is one, is the model's after training. Checkpoints keep it beside them, for
    `resume_from_checkpoint`, and the lineage of the model where the Tuning has the receipt of its
    load: `regraft trace` reads it. Where the policy measures statistics, whole batches of training
    go through the trainer's model.
    """

    def __init__(self, tuning: Tuning) -> None:
        self.tuning = tuning
        self.receipt: TuningReceipt | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **found: Any) -> None:
        if args.world_size > 1 and len(self.tuning.course.steps) > 1:
            raise TargetError(
                "the policy",
                found=f"tensors that start to learn later, in {args.world_size} processes",
                expected="what learns to stay the same",
                hint="train twice: a linear probe, then all of it",
            )
        optimizer = found["optimizer"]
        resuming = bool(state.global_step)
        if self.tuning.adapts and not resuming:
            self.tuning.adapt(found["train_dataloader"], found["model"])
        self.tuning.begin(getattr(optimizer, "optimizer", optimizer), resuming=resuming)
        kept = Path(args.output_dir) / f"checkpoint-{state.global_step}" / _KEPT
        if state.global_step and not kept.exists():
            raise TargetError(
                str(kept),
                found="a run that goes on, and no such file",
                expected="what Follow kept of the start and of the moving average",
                hint="go on from a checkpoint in the same output_dir, of a run with this callback",
            )
        if state.global_step:
            self.tuning.resume(torch.load(kept, map_location="cpu", weights_only=True))

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **found: Any) -> None:
        self.tuning.epoch(int(state.epoch or 0))

    def on_save(self, args: Any, state: Any, control: Any, **found: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            torch.save(self.tuning.state(), folder / _KEPT)
            receipt = self.tuning.loading
            if receipt is not None and receipt.keeper is not None:
                with beside_training(str(folder)):
                    receipt.keep_beside(folder, trained=self.tuning.trained)

    def on_train_end(self, args: Any, state: Any, control: Any, **found: Any) -> None:
        loader = found.get("train_dataloader")
        self.receipt = self.tuning.finish(loader, found["model"]).check()
