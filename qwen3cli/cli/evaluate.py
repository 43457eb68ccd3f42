"""The commands of `qwen3 eval`."""

from __future__ import annotations

from typing import Annotated

import typer

from qwen3cli.options import Json, Measuring, shared

evaluation = typer.Typer(rich_markup_mode=None, help="Measure a model on texts.")


@evaluation.command()
@shared
def kl(
    context: typer.Context,
    reference: Annotated[
        str, typer.Option("--reference", metavar="REF", help="What MODEL is compared with.")
    ],
    as_json: Json = False,
    *,
    reading: Measuring,
) -> None:
    """KL divergence of a model from a reference.

    With the perplexities of both, and how often their likeliest token is the same. The two share
    the memory of --ram, and of --vram, in halves.
    """
    from qwen3cli.evaluate import evaluate

    evaluate(reading, reference, context.obj, as_json=as_json)


@evaluation.command()
@shared
def ppl(context: typer.Context, as_json: Json = False, *, reading: Measuring) -> None:
    """Perplexity of a model."""
    from qwen3cli.evaluate import evaluate

    evaluate(reading, None, context.obj, as_json=as_json)
