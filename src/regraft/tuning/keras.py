"""Keras: a Policy around `model.fit`, on any of its backends.

    tuning = Tuning(model, Policy(probe_epochs=2, layer_decay=0.8), receipt=receipt)
    tuning.begin()
    for phase in tuning.phases(epochs=10):
        model.compile(tuning.optimizer(keras.optimizers.AdamW(1e-3, weight_decay=0.05)), loss)
        model.fit(x, y, initial_epoch=phase.start, epochs=phase.stop, callbacks=[Follow(tuning)])
    print(tuning.finish().check())

Keras fixes what learns when a model is compiled: a policy that lets more learn later has a phase
for each step, with an optimizer of its own, whose moments start anew.

In Keras a BatchNormalization is frozen as a whole or not at all: where its statistics are frozen,
so are its scale and shift.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import keras

from regraft.errors import TargetError
from regraft.receipts import Receipt
from regraft.targets import keras as keras_target
from regraft.tuning.courses import Course, course
from regraft.tuning.keras_data import assign
from regraft.tuning.keras_optimizers import Paced, Pull
from regraft.tuning.keras_statistics import measure
from regraft.tuning.policies import Policy
from regraft.tuning.receipts import TuningReceipt, Watch, beside_training, finished
from regraft.tuning.references import Reference, pulls


def course_of(model: Any, policy: Policy, receipt: Receipt | None = None) -> Course:
    """A policy worked out for a built model; see `regraft.tuning.courses.course`."""
    weights = keras_target.named(model)
    statistics = [
        name
        for name, (variable, owner) in weights.items()
        if any(variable is other for other in owner._non_trainable_variables)
    ]
    made = course(
        keras_target.skeleton(model).values(),
        policy,
        fresh=receipt.fresh if receipt else (),
        statistics=statistics,
    )
    still = {id(weights[n][1]) for n, t in made.items() if t.statistic and t.since is None}
    treatments = {
        name: t._replace(since=None) if id(weights[name][1]) in still else t
        for name, t in made.items()
    }
    return Course(policy, treatments, made.head, made.fresh)


class Tuning:
    """A Policy at work on a built model.

    **Arguments:**

    - `receipt`: what loading gave; what is fresh is the head unless the policy names one.
    - `reference`: the pretrained values; L2-SP needs them. Backends that compile the loss (JAX,
      TensorFlow) keep a copy of them in the compiled step.

    **Raises** `TargetError`, `RuleMatchedNothing` for a policy that does not fit the model.
    """

    def __init__(
        self,
        model: Any,
        policy: Policy,
        *,
        receipt: Receipt | None = None,
        reference: Reference | None = None,
    ) -> None:
        self.model, self.policy, self.loading = model, policy, receipt
        self.course = course_of(model, policy, receipt)
        self._pulls = pulls(self.course, reference)
        self._watch: Watch | None = None
        self._adapted = policy.batchnorm != "adapt"
        self._optimizer: Any = None
        self._kept = False
        self.now = 0
        self._before: list[tuple[Any, str, Any]] = []

    def adapt(self, batches: Iterable[Any]) -> None:
        """Measures statistics on new data before training, for `batchnorm="adapt"`; see
        `regraft.tuning.keras_statistics.measure`. To be called before `begin`, once."""
        measure(self.model, batches)
        self._adapted = True

    def begin(self, *, resuming: bool = False) -> None:
        """To be called before the first phase: hashes what is there, adds L2-SP's regularizers.

        `resuming`: `resume` follows, and the model gets its values from there. **Raises**
        `TargetError` where statistics are not adapted and should be.
        """
        if self._watch is None:
            if not self._adapted and not resuming:
                raise TargetError(
                    'batchnorm="adapt"',
                    found="statistics that were not measured on the new data",
                    expected="tuning.adapt(batches) before tuning.begin()",
                )
            self._watch = Watch(self.course, self.read)
            weights = keras_target.named(self.model)
            layers = {id(layer): layer for layer in self.model._flatten_layers()}
            self._before = [(layer, "trainable", layer.trainable) for layer in layers.values()]
            for name, (variable, _) in weights.items():
                self._before.append((variable, "trainable", variable.trainable))
                self._before.append((variable, "regularizer", variable.regularizer))
                if name in self._pulls:
                    strength, reference = self._pulls[name]
                    pretrained = None if reference is None else reference[name]
                    variable.regularizer = Pull(strength, pretrained, variable.regularizer)
        self.epoch(self.now)

    def phases(self, epochs: int) -> Iterable[range]:
        """Stretches of epochs in which the same tensors learn; each is set when it is asked for."""
        steps = [step for step in self.course.steps if step < epochs]
        for start, stop in zip(steps, [*steps[1:], epochs], strict=True):
            self.epoch(start)
            yield range(start, stop)

    def epoch(self, number: int) -> None:
        """Sets what learns in this epoch, from 0; the model must be compiled anew if it changed."""
        self.now = number
        keras_target.trainable(self.model, self.course.learning(number))

    def optimizer(self, base: Any, *, trial: bool = False) -> Any:
        """An optimizer like `base`, for what learns now, that keeps each tensor's rate and decays
        only what should be.

        A moving average, where there is one, goes on from that of the phase before; a `trial` has
        none.
        """
        config = base.get_config()
        if not isinstance(base._learning_rate, keras.Variable):  # a schedule, as it is
            config["learning_rate"] = base._learning_rate
        if self.policy.ema and not trial:
            config |= {"use_ema": True, "ema_momentum": self.policy.ema}
        made: Any = type(type(base).__name__, (Paced, type(base)), {}).from_config(config)
        weights = {n: v for n, (v, _) in keras_target.named(self.model).items()}
        made.rates = {id(v): self.course[n].rate for n, v in weights.items()}
        made.means, made.averaged = {}, 0
        if not trial:
            if self._optimizer is not None:
                made.go_on_from(self._optimizer)
            self._optimizer = made
            if self.policy.ema:  # at once: TensorFlow may build it while it traces a step
                made.build(list(self.model.trainable_variables))
        bare = [v for n, v in weights.items() if not self.course[n].decays]
        if bare and made.weight_decay is not None:
            made.exclude_from_weight_decay(var_list=bare)
        return made

    def finish(self, batches: Iterable[Any] | None = None) -> TuningReceipt:
        """To be called after the last phase: flags and regularizers are put back, hashes compared.

        `batches`: new data on which `batchnorm="recalibrate"` measures statistics. **Raises**
        `TargetError` where there is to be an average and no step of `tuning.optimizer` was seen:
        the weights stay as they are.
        """
        if self.policy.ema and not self._kept:
            self._put_average()
        self.release()
        anew = partial(measure, self.model)
        return finished(self._watch, self.read, self.now + 1, anew, batches)

    def keep(self, values: Mapping[str, Any]) -> None:
        """Puts these values (of the best epoch) into the model, in place of the average."""
        weights = keras_target.named(self.model)
        for name, value in values.items():
            assign(weights[name][0], value)
        self._kept = True

    def _put_average(self) -> None:
        pairs = self._optimizer.averages() if self._optimizer else []
        if not pairs or not self._optimizer.steps:
            raise TargetError(
                "Policy.ema",
                found="a moving average of no step",
                expected="a model compiled with tuning.optimizer(…), whose steps are averaged",
            )
        for variable, mean in pairs:
            variable.assign(keras_target.to_numpy(mean.value))

    def release(self) -> None:
        """Puts flags and regularizers back."""
        for thing, name, value in self._before:
            setattr(thing, name, value)
        self._before = []

    def read(self, name: str) -> Any:
        return keras_target.to_numpy(keras_target.named(self.model)[name][0].value)

    @property
    def trained(self) -> dict[str, bool]:
        """By tensor, whether training is allowed to change it; for `rg.save`."""
        return {name: name not in self.course.frozen for name in self.course}

    def state(self) -> dict[str, dict[str, str]]:
        """The first hashes, for a checkpoint."""
        return self._watch.to_json() if self._watch else {}

    def resume(self, state: Mapping[str, Mapping[str, str]]) -> None:
        """Goes on from `state()`; after `begin`."""
        if self._watch and state:
            self._watch.take(state)


class Checkpoints(keras.callbacks.ModelCheckpoint):
    """Keras' own, whose files have the lineage of the model beside them: `regraft trace` reads it.

    Keras has no place for it in its files, and a hash of what was written tells whether it is still
    of them.

    **Arguments:**

    - `tuning`: one that has the receipt of the model's load.
    - `filepath`, `options`: as for `ModelCheckpoint`, once an epoch.

    **Raises** `TargetError` without a receipt, or for files at other times.
    """

    def __init__(self, tuning: Tuning, filepath: str, **options: Any) -> None:
        if tuning.loading is None or options.get("save_freq", "epoch") != "epoch":
            raise TargetError(
                "Checkpoints",
                found="no receipt" if tuning.loading is None else "another save_freq",
                expected="Tuning(model, policy, receipt=rg.load(…)), and files once an epoch",
                hint="receipt.keep_beside(path) puts a lineage beside any file",
            )
        super().__init__(filepath, **options)
        self._tuning, self._receipt = tuning, tuning.loading

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        path = Path(str(self.filepath).format(epoch=epoch + 1, **(logs or {})))
        before = _stamp(path)
        super().on_epoch_end(epoch, logs)
        if _stamp(path) not in (None, before):
            with beside_training(str(path)):
                self._receipt.keep_beside(path, trained=self._tuning.trained)


def _stamp(path: Path) -> tuple[int, int] | None:
    return (path.stat().st_mtime_ns, path.stat().st_ino) if path.exists() else None


class Follow(keras.callbacks.Callback):
    """Tells a Tuning which epoch it is, so that its receipt knows how many there were.

    **Raises** `TargetError` where the policy tells of rates or an average and the model was
    compiled with an optimizer that does not know them, or where one fit goes on into another phase.
    """

    def __init__(self, tuning: Tuning) -> None:
        super().__init__()
        self._tuning = tuning

    def on_train_begin(self, logs: Any = None) -> None:
        model: Any = self.model
        optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
        course = self._tuning.course
        rates = [t.rate for t in course.values() if t.since is not None]
        asked = self._tuning.policy.ema or any(rate != 1 for rate in rates)
        if asked and not isinstance(optimizer, Paced):
            raise TargetError(
                type(optimizer).__name__,
                found="an optimizer that does not know the policy's rates or its moving average",
                expected="model.compile(tuning.optimizer(…), …)",
            )

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        course, now = self._tuning.course, self._tuning.now
        late = set(course.learning(epoch)) - set(course.learning(now))
        if late:
            raise TargetError(
                "model.fit",
                found=f"epoch {epoch + 1}, from which more tensors learn ({sorted(late)[0]} …)",
                expected="a fit for each of tuning.phases(epochs), compiled anew",
            )
        self._tuning.now = epoch
