"""`qwen3 chat`: flags and defaults."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from qwen3cli.cli.session import complete_sessions
from qwen3cli.errors import UsageError
from qwen3cli.options import Options, shared


@shared
def chat(
    context: typer.Context,
    latest: Annotated[bool, typer.Option("--continue", help="Go on with the last chat.")] = False,
    session: Annotated[
        str | None,
        typer.Option(
            "--session",
            metavar="ID",
            help="Go on with this chat; the beginning of its id is enough.",
            show_default=False,
            autocompletion=complete_sessions,
        ),
    ] = None,
    save_kv: Annotated[
        bool, typer.Option("--save-kv", help="Keep the kv cache, to go on without a wait.")
    ] = False,
    private: Annotated[
        bool, typer.Option("--private", help="Store neither the chat nor its lines.")
    ] = False,
    *,
    options: Options,
) -> int:
    """Talk over several turns. From a pipe, every line is a turn."""
    from qwen3cli.chat.loop import Storage, chat

    if context.args:
        raise UsageError("chat takes no prompt, but asks for messages; `qwen3 run` answers one")
    storage = Storage(latest, session, save_kv, private)
    given = context.get_parameter_source("system")
    if storage.resumes and not (given and given.name == "COMMANDLINE"):
        options = replace(options, system=None)  # it has its own
    return chat(options, storage, context.obj)
