"""`qwen3 run`: flags and defaults."""

from __future__ import annotations

from typing import Annotated

import typer

from qwen3cli.errors import UsageError
from qwen3cli.options import Json, Options, shared


@shared
def run(
    context: typer.Context,
    prompt: Annotated[str | None, typer.Argument(help="The question.", show_default=False)] = None,
    file: Annotated[
        list[str] | None,
        typer.Option(
            "-f", "--file", metavar="FILE", help="With a text; may be repeated; -: stdin."
        ),
    ] = None,
    extract: Annotated[
        bool, typer.Option("-x", "--extract", help="Print the code of the last fenced block alone.")
    ] = False,
    samples: Annotated[
        int | None,
        typer.Option(
            "-n",
            "--samples",
            metavar="K",
            help="K answers, with seeds one by one.",
            min=1,
            max=9999,
        ),
    ] = None,
    null: Annotated[
        bool, typer.Option("-0", "--null", help="End each answer with NUL, for xargs -0.")
    ] = False,
    receipt: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write what `qwen3 replay` repeats it from."),
    ] = None,
    schema: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The answer is JSON that keeps to this JSON schema."),
    ] = None,
    as_json: Json = False,
    as_events: Annotated[
        bool, typer.Option("--jsonl", help="Print a JSON object for each event, as they come.")
    ] = False,
    questions: Annotated[
        str | None,
        typer.Option("--batch", metavar="FILE", help="Answer the questions of a JSONL file."),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", metavar="FILE", help="The answers of a batch, as JSONL."),
    ] = None,
    parallel: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=64,
            help="Questions of a batch in work at a time (default: 8, if memory allows).",
        ),
    ] = None,
    *,
    options: Options,
) -> int:
    """Answer one question. Files and text from a pipe follow the prompt, or are the prompt."""
    if context.args:
        raise UsageError(f"the prompt ends before {context.args[0]!r}: put quotes around all of it")
    one = (prompt, file, samples, receipt, extract or None, null or None, as_json or None)
    if questions is not None:
        from qwen3cli.run.batch import Batch, batch

        if any(given is not None for given in (*one, as_events or None)):
            raise UsageError("--batch takes its questions from a file, and answers in JSON anyway")
        return batch(Batch(questions, output, parallel, schema), options, context.obj)
    if output is not None or parallel is not None:
        raise UsageError("-o and --parallel are for --batch")
    from qwen3cli.run.printer import Form
    from qwen3cli.run.question import Order, run

    several = samples is not None
    form = Form(json=as_json, events=as_events, extract=extract, null=null, several=several)
    order = Order(prompt, file or (), form, samples or 1, receipt, schema)
    return run(order, options, context.obj)
