"""LoRA through PEFT, and back to plain weights under their old names.

    lora = Lora(model, ("*.q.weight", "*.v.weight"), rank=8, receipt=receipt)
    ...  # train lora.model: only its adapters and what is fresh learn
    model = lora.merge()
    rg.save(model, "tuned.safetensors", receipt=receipt, trained=lora.trained)

Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from regraft.errors import MissingDependency, RuleMatchedNothing, TargetError
from regraft.receipts import Receipt
from regraft.rules import matches, matches_any
from regraft.targets._torch_arrays import to_numpy
from regraft.targets._torch_modules import tensors_of
from regraft.tuning.receipts import TuningReceipt, Watch
from regraft.tuning.torch import course_of

if TYPE_CHECKING:
    from regraft.tuning.courses import Course


class Lora:
    """A module with low-rank adapters at some of its layers.

    **Arguments:**

    - `model`: changed in place, as PEFT does, until `merge`. Its statistics (BatchNorm) follow the
      data in training mode, as under PEFT alone: keep such layers in evaluation mode.
    - `templates`: of weights that get an adapter. `rank`, `alpha`, `dropout`: as in PEFT's
      LoraConfig; `alpha` 0: twice the rank.
    - `also`: templates of layers that learn in full; what is fresh where there are none.

    **Raises** `MissingDependency`, `RuleMatchedNothing`, `TargetError` where PEFT cannot adapt a
    layer.
    """

    def __init__(
        self,
        model: Any,
        templates: Iterable[str],
        *,
        rank: int = 8,
        alpha: float = 0,
        dropout: float = 0.0,
        also: Iterable[str] = (),
        receipt: Receipt | None = None,
    ) -> None:
        try:
            import peft
        except ImportError as error:
            raise MissingDependency("peft", extra="lora", purpose="LoRA") from error
        names = list(tensors_of(model))
        said, full = tuple(templates), tuple(also) or tuple(receipt.fresh if receipt else ())
        idle = [t for t in (*said, *full) if not any(matches(t, name) for name in names)]
        if idle or not said:
            raise RuleMatchedNothing(
                f"{idle[0]!r}" if idle else "LoRA",
                found="no tensor of such a name" if idle else "no template",
                expected=f"templates for weights such as {names[0]!r}",
                problems=idle,
            )
        adapted = [n for n in names if matches_any(said, n) and n.endswith(".weight")]
        whole = sorted({n.rpartition(".")[0] for n in names if matches_any(full, n)})
        self.course = _course(model, adapted, whole)
        self._watch = Watch(self.course, lambda name: to_numpy(tensors_of(model)[name]))
        self.receipt: TuningReceipt | None = None
        config = peft.LoraConfig(
            r=rank,
            lora_alpha=alpha or 2 * rank,  # pyright: ignore[reportArgumentType]
            lora_dropout=dropout,
            target_modules=[name.rpartition(".")[0] for name in adapted],
            modules_to_save=whole or None,
        )
        try:
            self.model: Any = peft.get_peft_model(model, config)
        except ValueError as error:
            raise TargetError(
                type(model).__name__, found=str(error)[:300], expected="layers that PEFT can adapt"
            ) from error

    @property
    def trained(self) -> dict[str, bool]:
        """By tensor of the plain model, whether it could change; for `rg.save`."""
        return {name: treatment.since is not None for name, treatment in self.course.items()}

    def merge(self) -> Any:
        """The plain model with what was learned added to its weights, under its old names.

        `receipt` is there afterwards. **Raises** `VerificationFailed` where anything but the
        adapted weights changed.
        """
        merged = self.model.merge_and_unload(safe_merge=True)
        held = tensors_of(merged)
        self.receipt = self._watch.receipt(lambda name: to_numpy(held[name]), 0).check()
        return merged


def _course(model: Any, adapted: list[str], whole: list[str]) -> Course:
    """What may change, as a policy says it: the adapted weights and the layers that learn whole."""
    from regraft.tuning.policies import Policy

    free = (*adapted, *(f"{layer}.*" for layer in whole))
    return course_of(model, Policy(freeze=("*",), unfreeze=free))
