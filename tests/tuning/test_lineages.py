"""What trainers write themselves has the lineage of the model, too: `rg.trace` reads and holds it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import keras
import lightning
import numpy as np
import optax
import pytest
import torch
from jax import numpy as jnp
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import regraft as rg
from regraft.tuning import keras as keras_tuning
from regraft.tuning import lightning as lightning_tuning
from regraft.tuning import optax as optax_tuning
from regraft.tuning.torch import Tuning

sys.path.insert(0, str(Path(__file__).parent))
from networks import samples, torch_net

POLICY = rg.Policy(freeze=("0.*",))
LOADED = {"fresh": ["3.*"], "unused": ["old.3.*"]}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    state = {f"old.{name}": tensor for name, tensor in torch_net(7).state_dict().items()}
    torch.save(state, tmp_path / "base.pth")
    return tmp_path / "base.pth"


def told(path: Path, prefix: str = "", base: str = "base.pth") -> dict[str, str]:
    """By the model's names, the states that a file's lineage tells; its source is there."""
    assert [(s.name, s.state) for s in rg.sources_of(path)] == [(base, "verified")]
    found = rg.trace(path)
    assert all(name.startswith(prefix) for name in found.tensors)
    return {name.removeprefix(prefix): origin.state for name, origin in found.tensors.items()}


STATES = {"0.weight": "frozen", "0.bias": "frozen", "1.weight": "tuned", "1.bias": "tuned",
          "1.running_mean": "tuned", "1.running_var": "tuned", "3.weight": "fresh", "3.bias": "fresh"}  # fmt: skip


def expected(found: dict[str, str]) -> None:
    assert found.pop("1.num_batches_tracked") in ("tuned", "counter")
    assert found == STATES


class Task(lightning.LightningModule):
    def __init__(self, model: nn.Module, tuning: Tuning) -> None:
        super().__init__()
        self.model, self.tuning = model, tuning

    def training_step(self, batch: Any, index: int) -> Any:
        return functional.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.tuning.groups(0.05))


@pytest.mark.filterwarnings("ignore:.*(num_workers|log_every_n_steps).*")
def test_lightning_s_own_checkpoints(base: Path, tmp_path: Path) -> None:
    model = torch_net()
    tuning = Tuning(model, POLICY, receipt=rg.load(base, model, **LOADED))
    x, y = samples()
    trainer = lightning.Trainer(
        max_epochs=2, callbacks=[lightning_tuning.Follow(tuning)], logger=False, devices=1,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        accelerator="cpu",
    )  # fmt: skip
    trainer.fit(
        Task(model, tuning), DataLoader(TensorDataset(torch.as_tensor(x), torch.as_tensor(y)), 8)
    )
    (kept,) = tmp_path.rglob("*.ckpt")
    # The source is sought beside the file, or where it is said to be.
    states = {s.state for s in rg.sources_of(kept, [base])}
    assert states == {"verified"}
    expected(told(Path(kept.rename(tmp_path / "kept.ckpt")), "model."))


def test_the_checkpoints_of_transformers(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    from regraft.tuning.transformers import Follow

    class WithLoss(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Any, labels: Any) -> Any:
            logits = self.net(x)
            return {"loss": functional.cross_entropy(logits, labels), "logits": logits}

    model = torch_net()
    tuning = Tuning(model, POLICY, receipt=rg.load(base, model, **LOADED))
    arguments = TrainingArguments(
        str(tmp_path / "run"), num_train_epochs=1, save_strategy="epoch", report_to=[],
        use_cpu=True, disable_tqdm=True, logging_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip
    rows = [{"x": torch.as_tensor(x), "labels": int(y)} for x, y in zip(*samples(), strict=True)]
    optimizer = torch.optim.AdamW(tuning.groups(0.05))
    Trainer(
        WithLoss(model), arguments, train_dataset=rows, optimizers=(optimizer, None),
        callbacks=[Follow(tuning)],
    ).train()  # fmt: skip
    (folder,) = (tmp_path / "run").glob("checkpoint-*")
    (folder / base.name).symlink_to(base)
    for path in (folder, folder / "model.safetensors"):
        expected(told(path, "net."))
    assert rg.diff(base, folder)["net.0.bias"].status == "identical"


def test_no_training_ends_for_want_of_a_lineage(base: Path) -> None:
    """A checkpoint of another model, or of none of its tensors, is written as it is, and it is told."""
    tuning = Tuning(torch_net(), POLICY, receipt=rg.load(base, torch_net(), **LOADED))
    checkpoint: dict[str, Any] = {"state_dict": {"shard": torch.ones(3)}}
    with pytest.warns(UserWarning, match="no lineage is kept with a checkpoint"):
        lightning_tuning.Follow(tuning).on_save_checkpoint(None, None, checkpoint)
    assert set(checkpoint) == {"state_dict"}


def test_files_of_a_plain_loop(base: Path, tmp_path: Path) -> None:
    model = torch_net()
    receipt = rg.load(base, model, **LOADED)
    tuning = Tuning(model, POLICY, receipt=receipt)
    optimizer = torch.optim.AdamW(tuning.groups(0.05))
    tuning.begin(optimizer)
    x, y = samples()
    model.train()
    functional.cross_entropy(model(torch.as_tensor(x)), torch.as_tensor(y)).backward()
    optimizer.step()
    tuning.finish().check()
    torch.save(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "t.pt"
    )
    receipt.keep_beside(tmp_path / "t.pt", trained=tuning.trained)
    expected(told(tmp_path / "t.pt"))
    rg.save(model, tmp_path / "t.safetensors", receipt=receipt, trained=tuning.trained)
    expected(told(tmp_path / "t.safetensors"))


@pytest.mark.parametrize("ending", [".keras", ".weights.h5"])
def test_the_checkpoints_of_keras(ending: str, tmp_path: Path) -> None:
    def net(seed: int) -> Any:
        keras.utils.set_random_seed(seed)
        layers = keras.layers
        return keras.Sequential(
            [layers.Input((3,)), layers.Dense(8, name="first"), layers.Dense(2, name="head")]
        )

    rg.save(net(1), tmp_path / "base.npz")
    model = net(2)
    receipt = rg.load(tmp_path / "base.npz", model, fresh=["head/*"], unused=["head/*"])
    tuning = keras_tuning.Tuning(model, rg.Policy(freeze=("first/bias",)), receipt=receipt)
    tuning.begin()
    model.compile(
        tuning.optimizer(keras.optimizers.AdamW(0.05)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    kept = keras_tuning.Checkpoints(
        tuning, str(tmp_path / f"e{{epoch}}{ending}"), save_weights_only="weights" in ending,
        monitor="loss", save_best_only=True,
    )  # fmt: skip
    x, y = samples()
    model.fit(x, y, epochs=3, verbose=0, callbacks=[keras_tuning.Follow(tuning), kept])
    tuning.finish().check()
    written = sorted(tmp_path.glob(f"e*{ending}"))
    assert written
    for path in written:
        assert told(path, base="base.npz") == {
            "first/kernel": "tuned", "first/bias": "frozen", "head/kernel": "fresh",
            "head/bias": "fresh",
        }  # fmt: skip
    with pytest.raises(rg.TargetError, match="no receipt"):
        keras_tuning.Checkpoints(keras_tuning.Tuning(model, rg.Policy()), "x.keras")


def test_trees_that_optax_trained(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    tree = {"encoder": {"kernel": draw.normal(size=(3, 4)).astype("f4")},
            "head": {"kernel": draw.normal(size=(4, 2)).astype("f4")}}  # fmt: skip
    rg.save(tree, tmp_path / "base.msgpack")
    receipt = rg.load(tmp_path / "base.msgpack", jax.tree.map(jnp.zeros_like, tree))
    params: Any = receipt.model
    course = optax_tuning.course_of(params, rg.Policy(freeze=("encoder/*",)), receipt)
    optimizer = optax_tuning.follow(course, params, lambda rate, decay: optax.adamw(0.1 * rate))
    updates, _ = optimizer.update(
        jax.tree.map(jnp.ones_like, params), optimizer.init(params), params
    )
    path = rg.save(
        optax.apply_updates(params, updates), tmp_path / "t.msgpack", receipt=receipt,
        trained={name: name not in course.frozen for name in course},
    )  # fmt: skip
    states = {"encoder/kernel": "frozen", "head/kernel": "tuned"}
    assert told(path, base="base.msgpack") == states
