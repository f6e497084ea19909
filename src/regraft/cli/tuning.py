"""`finetune` and `demo`."""

from __future__ import annotations

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
    out_option,
    said_options,
    settings_option,
    would,
)
from regraft.cli.output import progress, say, show, show_json


@click.command(
    epilog="Example:  regraft finetune base.h5 mymodels:net --set num_classes=5 --fresh 'head.*' "
    "--unused 'fc.*' --data photos/ --size 96 -o mine.safetensors"
)
@click.argument("source")
@click.argument("target")
@click.option("--data", required=True, type=click.Path(),
              help="A folder of images by class, or an .npz with x and y.")  # fmt: skip
@settings_option
@said_options
@allowing_options
@container_option
@out_option
@click.option("--freeze", multiple=True, metavar="TEMPLATE", help="Tensors that do not learn.")
@click.option("--linear-probe", is_flag=True, help="Only what is fresh learns.")
@click.option("--epochs", default=10, show_default=True, type=click.IntRange(1))
@click.option("--batch-size", default=32, show_default=True, type=click.IntRange(1))
@click.option("--lr", default=1e-3, show_default=True, help="AdamW's learning rate.")
@click.option("--weight-decay", default=0.0, show_default=True)
@click.option("--patience", type=click.IntRange(0),
              help="Stop after so many epochs without a better validation loss.")  # fmt: skip
@click.option("--seed", default=0, show_default=True)
@click.option("--validation", default=0.2, show_default=True,
              help="Share of each class that is held out.")  # fmt: skip
@click.option("--size", type=click.IntRange(1), multiple=True,
              help="Height and width of images; once for squares.")  # fmt: skip
@click.option("--gray", is_flag=True, help="Images with one channel.")
@click.option("--report", "page", type=click.Path(), help="Write an HTML report, too.")
@force_option
@dry_run_option
@as_json_option
def finetune(
    source: str,
    target: str,
    data: str,
    settings: tuple[str, ...],
    said: Said,
    adapt: bool,
    accept: tuple[str, ...],
    container: str | None,
    out: str,
    freeze: tuple[str, ...],
    linear_probe: bool,
    epochs: int,
    validation: float,
    size: tuple[int, ...],
    gray: bool,
    page: str | None,
    force: bool,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Load SOURCE into the model that TARGET makes, fine-tune it and write it with lineage."""
    if would(dry_run, [source, data], out):
        return
    for path in (out, page):
        free(path, force)
    model, _ = built(target, settings)
    receipt = rg.load(
        source,
        model,
        rules=said.rules(),
        adapt=adapt,
        accept=accept,
        container=container,
    )
    say(str(receipt))
    with progress("fine-tuning", epochs) as advance:
        tuned = rg.finetune(
            model,
            data,
            receipt=receipt,
            freeze=freeze,
            linear_probe=linear_probe,
            validation=validation,
            size=size,
            gray=gray,
            progress=lambda epoch: advance(1, str(epoch)),
            epochs=epochs,
            **options,
        )
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
    show(f"written to {out}")


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
