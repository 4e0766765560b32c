"""``edged backup DIRECTORY`` and ``edged restore FILE``. Errors are EdgedErrors for the caller to print."""

from __future__ import annotations

import argparse
from pathlib import Path

from edged import config as settings
from edged.backup.restore import restore
from edged.backup.take import take

KEEP = 7  # a week of daily backups


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``backup`` and ``restore``. Every parser sets ``func``: arguments in, exit code out."""
    backup = subparsers.add_parser("backup", help="save buffer, models and configuration; the daemon goes on")
    backup.add_argument("directory", type=Path, help="where the file goes; it must be there (is the stick mounted?)")
    backup.add_argument("--keep", type=_count, default=KEEP, metavar="N", help=f"newest to keep (default {KEEP})")
    backup.set_defaults(func=_backup)
    again = subparsers.add_parser("restore", help="bring a backup to an empty device; edged must be stopped")
    again.add_argument("file", type=Path, help="what edged backup wrote")
    again.set_defaults(func=_restore)


def _backup(arguments: argparse.Namespace) -> int:
    config = settings.load(arguments.config)
    taken = take(config, arguments.config, arguments.directory, arguments.keep)
    print(
        f"{taken.path}: {len(taken.manifest.members)} files, {taken.size >> 10} KiB ({taken.unpacked >> 10} unpacked)"
    )
    for left in taken.manifest.left_out:
        print(f"  not in it, for it lies elsewhere: {left}")
    for old in taken.removed:
        print(f"  removed {old.name}")
    return 0


def _restore(arguments: argparse.Namespace) -> int:
    restored = restore(arguments.file, arguments.config)
    manifest = restored.manifest
    print(f"{restored.state}: {manifest.device} as of {manifest.made}, {len(manifest.members)} files")
    for kept in restored.kept:
        print(f"  stays as it was: {kept}")
    print("  start it: systemctl start edged edged-sync; its results begin a new epoch")
    return 0


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise ValueError
    return count
