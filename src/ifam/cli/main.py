"""The command line: runs a verb, and ends with one sentence where it cannot."""

import os
import sys
import time
from typing import Any

from ifam.cli.parser import VERBS, parse
from ifam.cli.stopped import what_is_left
from ifam.distributed import first_process, wait_for_first
from ifam.errors import IfamError
from ifam.interruption import Interrupted, ignore_signals, interruptible
from ifam.logs import shown


def main(args: list[str] | None = None) -> None:
    """Run a verb; errors of the input are one sentence on standard error, and exit status 2."""
    begun, alone = time.time(), args is None
    if args is None:
        _use_utf8()
    chosen: dict[str, Any] = {}
    verb = ""
    try:
        with shown(), interruptible():
            verb, chosen = parse(sys.argv[1:] if args is None else args)
            VERBS[verb](**chosen)
    except IfamError as error:
        wait_for_first()
        print(f"ifam: {_plain(error)}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as interrupted:
        if alone:
            ignore_signals()
        if first_process():
            left = what_is_left(verb, chosen, begun)
            print(f"ifam: Stopped by {interrupted}: {left}.", file=sys.stderr)
        sys.exit(interrupted.exit_status)


def _use_utf8() -> None:
    """Start again in Python's UTF-8 mode where the locale knows no more than ASCII or another single alphabet.

    Names of files and classes would otherwise be different texts than in any other locale, or none at all.
    """
    if sys.getfilesystemencoding().lower() != "utf-8" and not sys.flags.utf8_mode:
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, "-X", "utf8", "-m", "ifam.cli", *sys.argv[1:]])


def _plain(error: IfamError) -> str:
    """The sentence of an error; raised in a process that loads images, it comes wrapped into a traceback."""
    return str(error).rpartition(f"{IfamError.__module__}.{IfamError.__name__}: ")[2].strip()
