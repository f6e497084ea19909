"""`finetune` and `demo`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

import regraft as rg
from regraft.cli.options import (
    Said,
    allowing_options,
    as_json_option,
    built,
    container_option,
    dry_run_option,
    force_option,
    free,
    options,
    out_option,
    said_options,
    settings_option,
    would,
)
from regraft.cli.output import progress, say, show, show_json
from regraft.tuning import processes

_data_options = options(
    click.option("--data", required=True, type=click.Path(),
                 help="A folder of images by class, an .npz with x and y, a .csv or .parquet, or a "
                 "folder that the datasets library saved."),
    click.option("--validation", default=0.2, show_default=True,
                 help="Share of each class that is held out where the data brings no split."),
    click.option("--size", type=click.IntRange(1), multiple=True,
                 help="Height and width of images; once for squares."),
    click.option("--gray", is_flag=True, help="Images with one channel."),
    click.option("--answer", default="label", show_default=True, help="The column of answers."),
    click.option("--column", "columns", multiple=True, help="A column of inputs; all by default."),
    click.option("--regression", is_flag=True, help="Whole numbers are numbers, not classes."),
    click.option("--tokenizer", default="", help="A folder with a tokenizer, for a text column."),
    click.option("--length", default=0, help="At most so many tokens."),
    click.option("--rows", default="", metavar="MODULE:CALLABLE",
                 help="Makes of each row, a dict by column, what the model is given."),
)  # fmt: skip
_policy_options = options(
    click.option("--freeze", multiple=True, metavar="TEMPLATE", help="Tensors that do not learn."),
    click.option("--unfreeze", multiple=True, metavar="TEMPLATE", help="Exceptions from it."),
    click.option("--freeze-depth", default=0, metavar="N",
                 help="The first N blocks do not learn; below 0: all but so many."),
    click.option("--linear-probe", is_flag=True, help="Only what is fresh learns."),
    click.option("--probe-epochs", default=0, help="So long only the head learns (LP-FT)."),
    click.option("--thaw-every", default=0, metavar="EPOCHS",
                 help="One more block learns every so many epochs, from the head down."),
    click.option("--head", multiple=True, metavar="TEMPLATE",
                 help="The head; what is fresh by default."),
    click.option("--head-lr", default=1.0, help="Factor on the head's learning rate."),
    click.option("--layer-decay", default=1.0, help="Factor on the rate for each block down."),
    click.option("--batchnorm", type=click.Choice(["train", "freeze", "recalibrate", "adapt"]),
                 default="train", show_default=True, help="What becomes of statistics."),
    click.option("--l2-sp", default=0.0, help="Strength of the pull to the pretrained weights."),
    click.option("--ema", default=0.0, help="Decay of a moving average of the weights."),
)  # fmt: skip
_training_options = options(
    click.option("--epochs", default=10, show_default=True, type=click.IntRange(1)),
    click.option("--batch-size", default=32, show_default=True, type=click.IntRange(1)),
    click.option("--accumulate", default=1, type=click.IntRange(1),
                 help="Steps whose gradients are added up before an update."),
    click.option("--lr", default="0.001", show_default=True,
                 help="AdamW's learning rate; auto: found by a short run."),
    click.option("--weight-decay", default=0.0, show_default=True),
    click.option("--clip", default=0.0, help="Largest norm of a gradient; 0: any."),
    click.option("--schedule", type=click.Choice(["constant", "linear", "cosine"]),
                 default="constant", show_default=True),
    click.option("--warmup", default=0.0, help="Share of the steps over which the rate rises."),
    click.option("--precision", type=click.Choice(["32", "bf16", "16"]), default="32"),
    click.option("--patience", type=click.IntRange(0),
                 help="Stop after so many epochs without a better validation loss."),
    click.option("--seed", default=0, show_default=True),
    click.option("--checkpoints", type=click.Path(),
                 help="A folder; started again after a kill, the run goes on from there."),
    click.option("--log", type=click.Path(), help="A folder for curve.csv."),
    click.option("--tensorboard", is_flag=True, help="TensorBoard's events in the log, too."),
)  # fmt: skip


@click.command(
    epilog="Example:  regraft finetune base.h5 mymodels:net --set num_classes=5 --fresh 'head.*' "
    "--unused 'fc.*' --data photos/ --size 96 -o mine.safetensors\n\n"
    "Several processes:  torchrun --nproc-per-node 2 -m regraft finetune …"
)
@click.argument("source")
@click.argument("target", required=False)
@click.option("--model", "named", metavar="MODULE:CALLABLE", help="TARGET, by another way.")
@settings_option
@said_options
@allowing_options
@container_option
@out_option
@_data_options
@_policy_options
@_training_options
@click.option("--report", "page", type=click.Path(), help="Write an HTML report, too.")
@force_option
@dry_run_option
@as_json_option
def finetune(
    source: str,
    target: str | None,
    named: str | None,
    data: str,
    settings: tuple[str, ...],
    said: Said,
    adapt: bool,
    accept: tuple[str, ...],
    container: str | None,
    out: str,
    validation: float,
    checkpoints: str | None,
    log: str | None,
    tensorboard: bool,
    page: str | None,
    force: bool,
    dry_run: bool,
    as_json: bool,
    **more: Any,
) -> None:
    """Load SOURCE into the model that TARGET makes, fine-tune it and write it with lineage."""
    chosen = named or target
    if chosen is None or (named and target):
        raise click.UsageError("give the model once: TARGET, or --model module:callable")
    if tensorboard and log is None:
        raise click.UsageError("--tensorboard needs a folder: --log")
    if would(dry_run, [source, data], out):
        return
    first = processes.is_first()
    for path in (out, page) if first else ():
        free(path, force)
    reading, policy, how = (_taken(kind, more) for kind in (rg.Reading, rg.Policy, rg.Settings))
    model, _ = built(chosen, settings, seed=how.seed)
    receipt = rg.load(
        source,
        model,
        rules=said.rules(),
        adapt=adapt,
        accept=accept,
        container=container,
    )
    if first:
        say(str(receipt))
    with progress("fine-tuning", how.epochs) as advance:
        tuned = rg.finetune(
            model,
            data,
            receipt=receipt,
            policy=policy,
            settings=how,
            source=source if policy.l2_sp else None,
            validation=validation,
            reading=reading,
            checkpoints=checkpoints,
            log=log,
            tensorboard=tensorboard,
            progress=lambda epoch: advance(1, str(epoch)),
        )
    if not first:
        return
    rg.save(
        model, out, receipt=receipt, trained=tuned.trained, training=tuned.training, force=force
    )
    if page:
        rg.report(
            page, title=f"{Path(source).name} fine-tuned", receipt=receipt, tuned=tuned,
            diff=rg.diff(source, out), lineage=rg.trace(out), force=force,
        )  # fmt: skip
    if as_json:
        show_json(tuned.to_json())
        return
    for epoch in tuned.curve:
        mark = "  best" if epoch.number == tuned.best else ""
        show(f"  {epoch}{click.style(mark, fg='green')}")
    show(str(tuned.receipt))
    show(f"written to {out}")


def _taken(kind: Any, more: dict[str, Any]) -> Any:
    """The options that are fields of one of the values which say how to train."""
    fields = {field.name for field in dataclasses.fields(kind)}
    found = {name: value for name, value in more.items() if name in fields}
    if "lr" in found and found["lr"] != "auto":
        found["lr"] = click.FLOAT.convert(found["lr"], None, None)
    return kind(**found)


@click.command(epilog="Example:  regraft demo --folder demo")
@click.option("--folder", default="regraft-demo", show_default=True, type=click.Path(),
              help="Where the demo keeps its files.")  # fmt: skip
@click.option("--seeds", default=5, show_default=True, type=click.IntRange(1))
@as_json_option
def demo(folder: str, seeds: int, as_json: bool) -> None:
    """Show the main job on handwritten digits: Keras weights in a PyTorch model, fine-tuned."""
    from regraft import demonstration

    with progress("demo") as advance:
        found = demonstration.run(Path(folder), seeds, say=lambda text: advance(0, text))
    if as_json:
        show_json(found.to_json())
    else:
        show(str(found))
