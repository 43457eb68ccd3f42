"""The commands of `qwen3 session`: flags and exit codes, as commands.py has those of the others."""

from __future__ import annotations

from typing import Annotated

import typer

from qwen3cli.options import Json

sessions = typer.Typer(rich_markup_mode=None, help="The chats that are stored.")


def complete_sessions(incomplete: str) -> list[str]:
    """Ids that begin so."""
    from qwen3cli.chat.transcripts import stored

    return [path.stem for path in stored() if path.stem.startswith(incomplete)]


_Id = Annotated[
    str,
    typer.Argument(
        metavar="ID",
        help="As in `session ls`, or the beginning of it.",
        autocompletion=complete_sessions,
    ),
]
_Thoughts = Annotated[bool, typer.Option("--thoughts", help="With the thoughts.")]


@sessions.command("ls")
def list_sessions(context: typer.Context, as_json: Json = False) -> None:
    """List the sessions, the one used last first."""
    from qwen3cli.chat.archive import ls

    ls(context.obj, as_json=as_json)


@sessions.command("show")
def show_session(
    context: typer.Context, session: _Id, thoughts: _Thoughts = False, as_json: Json = False
) -> None:
    """Show what was said.

    Exit code 7: the session's file is damaged.
    """
    from qwen3cli.chat.archive import show

    show(session, context.obj, thoughts=thoughts, as_json=as_json)


@sessions.command("export")
def export_session(
    context: typer.Context,
    session: _Id,
    out: Annotated[
        str | None, typer.Option("-o", "--out", metavar="FILE", help="The file to write.")
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="markdown|json|jsonl|text",
            help="json: messages as OpenAI's API takes them; jsonl: the session's lines (default: "
            "as the name of FILE ends, or else markdown).",
            show_default=False,
        ),
    ] = None,
    thoughts: _Thoughts = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a file of this name.")] = False,
) -> None:
    """Write a session for others to read.

    Exit code 7: the session's file is damaged.
    """
    from qwen3cli.chat.archive import export

    export(session, out, form, context.obj, thoughts=thoughts, force=force)


@sessions.command("rm")
def remove_sessions(
    context: typer.Context,
    ids: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ID...",
            help="As in `session ls`, or the beginning of it.",
            show_default=False,
            autocompletion=complete_sessions,
        ),
    ] = None,
    older: Annotated[
        str | None,
        typer.Option(
            "--older-than",
            metavar="30d",
            help="Those not used for so many hours (h), days (d) or weeks (w).",
            show_default=False,
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Remove sessions, and their saved kv caches.

    Tells what goes, and asks; in a pipe --yes is needed. One that is open in a chat stays.
    """
    from qwen3cli.chat.archive import rm

    rm(ids or [], older, context.obj, yes=yes, as_json=as_json)
