"""The commands of `qwen3 config`: flags and exit codes, as commands.py has those of the others."""

from __future__ import annotations

from typing import Annotated

import typer

from qwen3cli.options import Json

settings = typer.Typer(rich_markup_mode=None, help="What flags are when they are not given.")


def _keys(incomplete: str) -> list[str]:
    from qwen3cli.config import KEYS

    return [key for key in KEYS if key.startswith(incomplete)]


_Key = Annotated[
    str, typer.Argument(metavar="KEY", help="As in `config list`.", autocompletion=_keys)
]


@settings.command("list")
def list_settings(
    context: typer.Context,
    origin: Annotated[bool, typer.Option("--origin", help="Say where each comes from.")] = False,
    as_json: Json = False,
) -> int:
    """Show every setting.

    Exit code 2: there is something wrong in the file or the environment.
    """
    from qwen3cli.configure import show_settings

    return show_settings(context.obj, origin=origin, as_json=as_json)


@settings.command("get")
def get_setting(context: typer.Context, key: _Key) -> int:
    """Show one setting.

    Exit code 1: it is not set.
    """
    from qwen3cli.configure import show_setting

    return show_setting(key, context.obj)


@settings.command("set", context_settings={"ignore_unknown_options": True})
def set_setting(
    context: typer.Context, key: _Key, value: Annotated[str, typer.Argument(metavar="VALUE")]
) -> int:
    """Write a setting to the file.

    Exit code 2: it is no value, or there is something else wrong in the file.
    """
    from qwen3cli.configure import change

    return change(key, value, context.obj)


@settings.command("unset")
def unset_setting(context: typer.Context, key: _Key) -> int:
    """Remove a setting from the file.

    Exit code 2: there is something else wrong in it.
    """
    from qwen3cli.configure import change

    return change(key, None, context.obj)


@settings.command("path")
def setting_path(context: typer.Context) -> None:
    """Show where the file is."""
    from qwen3cli.configure import show_path

    show_path(context.obj)
