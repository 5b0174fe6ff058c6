"""Entry point of the command line: runs a verb, and reports errors in one sentence."""

import os
import sys
import time
from typing import Any

from ifam.cli.parser import VERBS, parse
from ifam.cli.stopped import what_is_left
from ifam.commands import recorded
from ifam.distributed import (
    announce_error,
    end_started,
    first_process,
    leave_group,
    reported_elsewhere,
    wait_for_first,
)
from ifam.errors import IfamError, ReportedError
from ifam.interruption import Interrupted, ignore_signals, interruptible
from ifam.logs import shown


def main(args: list[str] | None = None) -> None:
    """Run a verb; input errors are reported in one sentence on standard error, with exit status 2."""
    started, is_program = time.time(), args is None
    if args is None:
        _use_utf8()
    settings: dict[str, Any] = {}
    verb = ""
    try:
        with shown(), interruptible():
            verb, settings = parse(sys.argv[1:] if args is None else args)
            if verb != "repeat":
                _run(verb, settings)
                return
            repetition = VERBS[verb](**settings)
            with repetition.words() as words:
                verb, settings = parse(words)
            _run(verb, settings)
            if first_process() and not repetition.is_equal():
                sys.exit(1)
    except IfamError as error:
        if not isinstance(error, ReportedError):
            announce_error()
            wait_for_first()
            print(f"ifam: {_plain(error)}", file=sys.stderr, flush=True)
        _leave_others()
        sys.exit(2)
    except Interrupted as interrupted:
        if is_program:
            ignore_signals()
        if reported_elsewhere():
            # Whoever has started the processes ends them all when one fails.
            _leave_others()
            sys.exit(2)
        if first_process():
            state = what_is_left(verb, settings, started)
            print(f"ifam: Stopped by {interrupted}: {state}.", file=sys.stderr)
        sys.exit(interrupted.exit_status)


def _run(verb: str, settings: dict[str, Any]) -> None:
    with recorded(verb, settings):
        VERBS[verb](**settings)


def _leave_others() -> None:
    """End the processes that this one has started, and leave the others."""
    end_started()
    leave_group()


def _use_utf8() -> None:
    """Restart in Python's UTF-8 mode if the locale uses another encoding.

    Otherwise names of files and classes could be decoded differently than in other locales, or not at all.
    """
    if sys.getfilesystemencoding().lower() != "utf-8" and not sys.flags.utf8_mode:
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, "-X", "utf8", "-m", "ifam.cli", *sys.argv[1:]])


def _plain(error: IfamError) -> str:
    """The message of an error; one raised in a data loading process is wrapped in a traceback."""
    return str(error).rpartition(f"{IfamError.__module__}.{IfamError.__name__}: ")[2].strip()
