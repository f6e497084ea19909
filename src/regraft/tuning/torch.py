"""PyTorch: a Policy in any loop that steps a `torch.optim` optimizer.

    tuning = Tuning(model, Policy(layer_decay=0.75, batchnorm="freeze"), receipt=receipt)
    optimizer = torch.optim.AdamW(tuning.groups(lr=1e-3, weight_decay=0.05))
    tuning.begin(optimizer)
    for epoch in range(10):
        tuning.epoch(epoch)
        ...  # model.train(), loss.backward(), optimizer.step() as always
    print(tuning.finish().check())

What is frozen has no gradient and is in no group, so neither decay nor momentum reaches it. What
learns later is in a group from the start, without a gradient until then, which `torch.optim`
passes over. Layers with frozen statistics are kept in evaluation mode however often
`model.train()` is called.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from regraft.errors import TargetError
from regraft.targets import torch as torch_target
from regraft.targets._torch_arrays import to_numpy
from regraft.targets._torch_modules import Names, tensors_of, unwrapped
from regraft.transfer import Receipt
from regraft.tuning.policies import Course, Policy, course
from regraft.tuning.receipts import TuningReceipt, Watch
from regraft.tuning.references import Reference
from regraft.tuning.torch_statistics import measure


def course_of(model: torch.nn.Module, policy: Policy, receipt: Receipt | None = None) -> Course:
    """A policy worked out for a module; see `regraft.tuning.policies.course`."""
    catalogue = torch_target.skeleton(model)
    held = tensors_of(model)
    statistics = [n for n, tensor in held.items() if not isinstance(tensor, torch.nn.Parameter)]
    return course(
        catalogue.values(),
        policy,
        fresh=receipt.fresh if receipt else (),
        statistics=statistics,
        ties=catalogue.ties,
    )


class Tuning:
    """A Policy at work on a module.

    **Arguments:**

    - `receipt`: what loading gave; what is fresh is the head unless the policy names one.
    - `reference`: the pretrained values; L2-SP needs them.

    **Raises** `TargetError`, `RuleMatchedNothing` for a policy that does not fit the model.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        policy: Policy,
        *,
        receipt: Receipt | None = None,
        reference: Reference | None = None,
    ) -> None:
        self.model, self.policy, self.reference = model, policy, reference
        self.course = course_of(model, policy, receipt)
        self.average: dict[str, Any] = {}
        self._epoch = self._updates = 0
        self._handles: list[Any] = []
        self._hooked: set[int] = set()
        self._watch: Watch | None = None
        self._flags: dict[str, bool] = {}
        if policy.l2_sp and reference is None:
            raise TargetError(
                "L2-SP",
                found="no pretrained values to pull towards",
                expected="a Reference",
                hint="Reference(receipt, rg.open(path).read)",
            )

    def parameters(self) -> dict[str, Any]:
        """The parameters by the course's names; one name for those that are tied."""
        seen: dict[int, str] = {}
        held = tensors_of(self.model).items()
        listed = {n: p for n, p in held if isinstance(p, torch.nn.Parameter)}
        return {n: p for n, p in listed.items() if seen.setdefault(id(p), n) == n}

    def groups(self, lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Groups for a `torch.optim` optimizer: one for each rate, with and without decay.

        Each has its tensors' `names`. Their rates stay in proportion under any schedule.
        """
        found: dict[tuple[float, bool], dict[str, Any]] = {}
        for name, parameter in self.parameters().items():
            treatment = self.course[name]
            if treatment.since is None:
                continue
            group = found.setdefault(
                (treatment.rate, treatment.decays),
                {
                    "params": [],
                    "names": [],
                    "lr": lr * treatment.rate,
                    "weight_decay": weight_decay if treatment.decays else 0.0,
                },
            )
            group["params"].append(parameter)
            group["names"].append(name)
        return list(found.values())

    def begin(self, *optimizers: torch.optim.Optimizer) -> None:
        """To be called before the first epoch: hashes what is there, and holds what is frozen.

        The optimizers' steps are followed: L2-SP's gradient is added before each (after any
        clipping), the moving average is taken after it.
        """
        if self._watch is None:
            self._watch = Watch(self.course, self.read)
            self._flags = {n: p.requires_grad for n, p in self.parameters().items()}
            for module, names in self._statistics():
                self._handles += self._stay(module, names)
        if self.policy.ema and not self.average:
            held = tensors_of(self.model)
            self.average = {n: held[n].detach().clone() for n in self._moving()}
        for optimizer in optimizers:
            if id(optimizer) not in self._hooked:
                self._hooked.add(id(optimizer))
                self._handles.append(optimizer.register_step_pre_hook(self._pull))
                self._handles.append(optimizer.register_step_post_hook(self._averages))
        self.epoch(self._epoch)

    def epoch(self, number: int) -> None:
        """What learns in this epoch, from 0, has a gradient; the rest has none."""
        self._epoch = number
        for name, parameter in self.parameters().items():
            if parameter.dtype.is_floating_point or parameter.dtype.is_complex:
                parameter.requires_grad_(self.course[name].learns(number))
                if not parameter.requires_grad:
                    parameter.grad = None

    def penalty(self) -> Any:
        """L2-SP's term as a scalar with a gradient, for loops that do not call `begin` with their
        optimizer; Li et al. 2018, eq. (4)."""
        return sum(
            (0.5 * strength * (p - pretrained).square().sum() if pretrained is not None
             else 0.5 * strength * p.square().sum())
            for p, strength, pretrained in self._pulled()
        )  # fmt: skip

    @contextmanager
    def averaged(self) -> Generator[None]:
        """The moving average in the model's place, where there is one; for validation."""
        if not self.average:
            yield
            return
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def keep(self, values: Mapping[str, Any]) -> None:
        """Puts these values (of the best epoch) into the model, in place of the average."""
        self.average = {}
        held = tensors_of(self.model)
        with torch.no_grad():
            for name, value in values.items():
                held[name].copy_(value)

    def moving(self) -> dict[str, Any]:
        """Copies of all that is not frozen, the average where there is one; see `keep`."""
        with self.averaged():
            held = tensors_of(self.model)
            return {n: held[n].detach().cpu().clone() for n in self._moving()}

    def finish(self, batches: Iterable[Any] | None = None) -> TuningReceipt:
        """To be called after the last epoch: the moving average becomes the model's values, hooks
        are removed, flags put back, and hashes compared.

        `batches`: new data on which `batchnorm="recalibrate"` measures statistics.
        """
        if self._watch is None:
            raise TargetError("Tuning.finish", found="no begin()", expected="begin() before it")
        if self.average:
            self._swap()
            self.average = {}
        self.release()
        if self.policy.batchnorm == "recalibrate":
            if batches is None:
                raise TargetError(
                    "batchnorm='recalibrate'",
                    found="no data to measure statistics on",
                    expected="tuning.finish(batches)",
                )
            measure(self.model, batches)
        return self._watch.receipt(self.read, self._epoch + 1)

    def release(self) -> None:
        """Removes hooks and puts `requires_grad` back, as `finish` does."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._hooked.clear()
        for name, parameter in self.parameters().items():
            parameter.requires_grad_(self._flags.get(name, parameter.requires_grad))

    def read(self, name: str) -> Any:
        return to_numpy(tensors_of(self.model)[name])

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep besides the model: the average and the first hashes."""
        watch = self._watch.to_json() if self._watch else {}
        return {"average": dict(self.average), "updates": self._updates, "watch": watch}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state()`; after `begin`."""
        self._updates = state["updates"]
        for name, tensor in state["average"].items():
            self.average[name].copy_(tensor)
        if self._watch and state["watch"]:
            self._watch.take(state["watch"])

    def _statistics(self) -> list[tuple[Any, list[str]]]:
        """Modules with statistics, and the statistics' names."""
        inner = unwrapped(self.model)
        names = Names(inner)
        found: list[tuple[Any, list[str]]] = []
        for path, module in inner.named_modules():
            prefix = f"{names.shown(path)}." if path else ""
            own = [f"{prefix}{leaf}" for leaf, _ in module.named_buffers(recurse=False)]
            if own := [name for name in own if name in self.course]:
                found.append((module, own))
        return found

    def _stay(self, module: Any, names: list[str]) -> list[Any]:
        """Hooks that let a module run in evaluation mode while its statistics are frozen; its own
        flag is as before when it has run, since trainers set it when they like."""
        flags: list[bool] = []

        def before(module: Any, inputs: Any) -> None:
            flags.append(module.training)
            if not any(self.course[name].learns(self._epoch) for name in names):
                module.training = False

        def after(module: Any, inputs: Any, outputs: Any) -> None:
            module.training = flags.pop()

        return [
            module.register_forward_pre_hook(before),
            module.register_forward_hook(after, always_call=True),
        ]

    def _moving(self) -> list[str]:
        held = tensors_of(self.model)
        moving = [n for n, t in self.course.items() if t.since is not None and n in held]
        first: dict[int, str] = {}
        return [n for n in moving if first.setdefault(id(held[n]), n) == n]

    def _averages(self, *_: Any) -> None:
        if not self.average:
            return
        self._updates += 1
        # The first averages are over what there is so far.
        decay = min(self.policy.ema, self._updates / (self._updates + 9))
        held = tensors_of(self.model)
        with torch.no_grad():
            for name, mean in self.average.items():
                value = held[name].detach()
                if mean.dtype.is_floating_point and not self.course[name].statistic:
                    mean.lerp_(value.to(mean.dtype), 1 - decay)
                else:
                    mean.copy_(value)

    def _swap(self) -> None:
        held = tensors_of(self.model)
        with torch.no_grad():
            for name, mean in self.average.items():
                value = held[name].detach().clone()
                held[name].copy_(mean)
                mean.copy_(value)

    def _pull(self, *_: Any) -> None:
        with torch.no_grad():
            for parameter, strength, pretrained in self._pulled():
                if parameter.grad is not None:
                    apart = parameter if pretrained is None else parameter - pretrained
                    parameter.grad.add_(apart.to(parameter.grad.dtype), alpha=strength)

    def _pulled(self) -> Generator[tuple[Any, float, Any]]:
        """Parameters that are pulled, how much, and to where; `None`: to 0."""
        policy, reference = self.policy, self.reference
        for name, parameter in self.parameters().items():
            if not self.course[name].learns(self._epoch):
                continue
            if policy.l2_sp and reference is not None and name in reference:
                yield parameter, policy.l2_sp, _shared(reference[name], parameter)
            elif policy.l2_sp_fresh and (reference is None or name not in reference):
                yield parameter, policy.l2_sp_fresh, None


def _shared(array: Any, like: Any) -> Any:
    """An array as a tensor of the same memory, on the device of another."""
    from regraft.targets._torch_arrays import to_torch

    return to_torch(array).to(like.device, like.dtype)
