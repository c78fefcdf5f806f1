"""The commands about stored tokens of frozen encoders: `harness cache`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

cache = typer.Typer(
    name="cache", help="Look at the stored tokens of frozen encoders.", no_args_is_help=True
)
Keys = Annotated[list[str] | None, typer.Argument(help="Keys, as `harness cache ls` shows them.")]


@cache.callback()
def group() -> None:
    """Look at the stored tokens of frozen encoders."""


@cache.command("ls")
def list_stored() -> None:
    """Say what is stored: of what, how large, and by how many runs it was read.

    Example: harness cache ls
    """
    from harness.cached import entries
    from harness.shards import in_bytes

    store = _store()
    found = entries(store)
    for entry in found:
        print(entry.in_words(store))
    print(f"{len(found)} in {store.tokens}, {in_bytes(sum(entry.bytes for entry in found))}")


@cache.command()
def verify(keys: Keys = None) -> None:
    """Read all that is stored and compare it with its checksums. Exit code 1: something is damaged.

    Example: harness cache verify
    """
    from harness.cached import entries

    store, bad, looked = _store(), 0, 0
    for entry in entries(store, keys):
        if not entry.about:
            print(f"{entry.key}: of another version of the harness, not looked at")
            continue
        looked += 1
        print(f"{entry.key} ...", file=sys.stderr, flush=True)
        told = list(entry.damaged())
        bad += bool(told and entry.complete)
        for line in told:
            print(line)
        if told and entry.complete:
            print(f"`harness cache rm {entry.key}` removes it, and it is computed again")
    if bad:
        raise typer.Exit(1)
    print(f"{looked} looked at: what is complete is sound")


@cache.command()
def rm(
    keys: Keys = None,
    unused: Annotated[
        bool, typer.Option("--unused", help="All that no run folder is left of.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete stored tokens; they are computed again when a run needs them.

    Example: harness cache rm --unused
    """
    from harness.cached import entries
    from harness.cached import unused as without_runs
    from harness.config import ConfigError

    store = _store()
    if bool(keys) == unused:
        raise ConfigError("give keys, as `harness cache ls` shows them, or --unused")
    found = without_runs(store) if unused else entries(store, keys)
    for entry in found:
        print(entry.in_words(store), file=sys.stderr)
    if not found:
        print("nothing to remove", file=sys.stderr)
        return
    if not yes and not typer.confirm(f"remove {len(found)}?", err=True):
        raise typer.Exit(1)
    for entry in found:
        entry.remove(store)
        print(f"removed {entry.key}", file=sys.stderr)


def _store():  # type: ignore[no-untyped-def]
    from harness.site import read_site
    from harness.store import Store

    return Store(read_site().runs)
