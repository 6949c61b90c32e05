"""`autoft cache`: what the image cache holds, and emptying it."""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict

from rich import box
from rich.table import Table

from autoft.cli.progress import plural, stdout_console
from autoft.cli.runtime import cache_dir
from autoft.data.room import Entry, cache_limit, clear, entries, readable


def cache(args: argparse.Namespace) -> int:
    """List the cache's entries, or remove those that no process uses."""
    folder = cache_dir()
    gone: list[Entry] = []
    if args.action == "clear":
        gone, found = clear(folder)
    else:
        found = entries(folder)
    held = sum(entry.nbytes for entry in found)
    limit = cache_limit(folder, held)
    if args.json:
        facts = {"folder": str(folder), "bytes": held, "limit_bytes": limit, "entries": [asdict(entry) for entry in found]}
        print(json.dumps(facts | ({"removed": [asdict(entry) for entry in gone]} if args.action == "clear" else {}), indent=1))
        return 0
    if args.action == "clear":
        print(f"removed {plural(len(gone), 'entry').replace('entrys', 'entries')}, {readable(sum(entry.nbytes for entry in gone))}")
    if found:
        stdout_console().print(_table(found))
    print(f"{folder}: {readable(held)} of {readable(limit)}")
    return 0


def _table(found: Sequence[Entry]) -> Table:
    table = Table("entry", "holds", "made for", "images", "size", "last used", "in use", box=box.SIMPLE_HEAD)
    for entry in reversed(found):
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        images = "" if entry.images is None else f"{entry.images:,}"
        table.add_row(entry.name[:20], entry.kind, entry.field, images, readable(entry.nbytes), when, "yes" if entry.in_use else "")
    return table
