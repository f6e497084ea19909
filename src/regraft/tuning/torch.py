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
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch

from regraft.errors import TargetError
from regraft.receipts import Receipt
from regraft.targets import torch as torch_target
from regraft.targets._torch_arrays import to_numpy
from regraft.targets._torch_modules import tensors_of
from regraft.tuning.courses import Course, course
from regraft.tuning.policies import Policy
from regraft.tuning.receipts import TuningReceipt, Watch, finished
from regraft.tuning.references import Reference, pulls
from regraft.tuning.torch_averages import Average
from regraft.tuning.torch_groups import grouped, heeded
from regraft.tuning.torch_statistics import holders, measure, staying


def course_of(model: torch.nn.Module, policy: Policy, receipt: Receipt | None = None) -> Course:
    """A policy worked out for a module; see `regraft.tuning.courses.course`."""
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
        self.model, self.policy, self.loading = model, policy, receipt
        self.course = course_of(model, policy, receipt)
        self._pulls = pulls(self.course, reference)
        self.average: Average | None = None
        self._epoch = 0
        self._adapted = policy.batchnorm != "adapt"
        self._handles: list[Any] = []
        self._hooked: set[int] = set()
        self._watch: Watch | None = None
        self._flags: dict[str, bool] = {}

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
        return grouped(self.course, self.parameters(), lr, weight_decay)

    def adapt(self, batches: Iterable[Any], around: torch.nn.Module | None = None) -> None:
        """Measures statistics on new data before training, for `batchnorm="adapt"`; see
        `regraft.tuning.torch_statistics.measure`. To be called before `begin`, once."""
        measure(self.model, batches, around)
        self._adapted = True

    @property
    def adapts(self) -> bool:
        """Whether statistics are still to be measured before training."""
        return not self._adapted

    def begin(self, *optimizers: torch.optim.Optimizer, resuming: bool = False) -> None:
        """To be called before the first epoch: hashes what is there, and holds what is frozen.

        The optimizers' steps are followed: L2-SP's gradient is added before each (after any
        clipping), the moving average is taken after it. `resuming`: `resume` follows, and the model
        has its values from there. **Raises** `TargetError` where the optimizers' groups do not have
        the rates that the policy asks for, or statistics are not adapted.
        """
        heeded(self.course, self.parameters(), optimizers)
        if self._watch is None:
            if self.adapts and not resuming:
                raise TargetError(
                    'batchnorm="adapt"',
                    found="statistics that were not measured on the new data",
                    expected="tuning.adapt(batches) before tuning.begin()",
                )
            self._watch = Watch(self.course, self.read)
            self._flags = {n: p.requires_grad for n, p in self.parameters().items()}
            for module, names in holders(self.model, self.course):
                self._handles += staying(module, lambda names=names: not self._learns(names))
        if self.policy.ema and self.average is None:
            exact = frozenset(name for name, t in self.course.items() if t.statistic)
            moving = self._moving()
            self.average = Average(lambda: tensors_of(self.model), moving, exact, self.policy.ema)
        for optimizer in optimizers:
            if id(optimizer) not in self._hooked:
                self._hooked.add(id(optimizer))
                self._handles.append(optimizer.register_step_pre_hook(self._before))
                self._handles.append(optimizer.register_step_post_hook(self._follow))
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
        with self.average.in_place() if self.average else nullcontext():
            yield

    def keep(self, values: Mapping[str, Any]) -> None:
        """Puts these values (of the best epoch) into the model, in place of the average."""
        self.average = None
        held = tensors_of(self.model)
        with torch.no_grad():
            for name, value in values.items():
                held[name].copy_(value)

    def moving(self) -> dict[str, Any]:
        """Copies of all that is not frozen, the average where there is one; see `keep`."""
        with self.averaged():
            held = tensors_of(self.model)
            return {n: held[n].detach().cpu().clone() for n in self._moving()}

    def finish(
        self, batches: Iterable[Any] | None = None, around: torch.nn.Module | None = None
    ) -> TuningReceipt:
        """To be called after the last epoch: the moving average becomes the model's values, hooks
        are removed, flags put back, and hashes compared.

        **Arguments:**

        - `batches`: new data on which `batchnorm="recalibrate"` measures statistics.
        - `around`: the module that batches are given to, where it is not the model but holds it.

        **Raises** `TargetError` where there is an average and no step was followed: the weights
        stay as they are.
        """
        if self.average:
            if not self.average.updates:
                raise TargetError(
                    "Policy.ema",
                    found="a moving average of no step",
                    expected="tuning.begin(optimizer), whose steps are followed",
                )
            self.average.put()
            self.average = None
        self.release()
        anew = partial(measure, self.model, around=around)
        return finished(self._watch, self.read, self._epoch + 1, anew, batches)

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

    @property
    def trained(self) -> dict[str, bool]:
        """By tensor, whether training is allowed to change it; for `rg.save`."""
        return {name: name not in self.course.frozen for name in self.course}

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep besides the model: the average and the first hashes."""
        watch = self._watch.to_json() if self._watch else {}
        return {"average": self.average.state() if self.average else {}, "watch": watch}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state()`; after `begin`."""
        if self.average and state["average"]:
            self.average.resume(state["average"])
        if self._watch and state["watch"]:
            self._watch.take(state["watch"])

    def _learns(self, names: list[str]) -> bool:
        return any(self.course[name].learns(self._epoch) for name in names)

    def _moving(self) -> list[str]:
        held = tensors_of(self.model)
        moving = [n for n, t in self.course.items() if t.since is not None and n in held]
        first: dict[int, str] = {}
        return [n for n in moving if first.setdefault(id(held[n]), n) == n]

    def _follow(self, *_: Any) -> None:
        if self.average:
            self.average.update()

    def _before(self, _: Any, args: Any, options: Any) -> Any:
        """Adds L2-SP's gradient before a step. A closure makes the gradients within the step
        (Lightning always gives one), so there they are added to when it has run."""
        given = [*args[1:], options.get("closure")]
        if given[0] is None:
            self._pull()
            return None

        def closure() -> Any:
            loss = given[0]()
            self._pull()
            return loss

        return args[:1], {**options, "closure": closure}

    def _pull(self) -> None:
        with torch.no_grad():
            for parameter, strength, pretrained in self._pulled():
                if parameter.grad is not None:
                    apart = parameter if pretrained is None else parameter - pretrained
                    parameter.grad.add_(apart.to(parameter.grad.dtype), alpha=strength)

    def _pulled(self) -> Generator[tuple[Any, float, Any]]:
        """Parameters that are pulled, how much, and to where; `None`: to 0."""
        for name, parameter in self.parameters().items():
            if name in self._pulls and self.course[name].learns(self._epoch):
                strength, reference = self._pulls[name]
                pretrained = None if reference is None else _shared(reference[name], parameter)
                yield parameter, strength, pretrained


def _shared(array: Any, like: Any) -> Any:
    """An array as a tensor of the same memory, on the device of another."""
    from regraft.targets._torch_arrays import to_torch

    return to_torch(array).to(like.device, like.dtype)
