"""Entry point of the command line: runs a verb, and reports errors in one sentence."""

import os
import sys
import time
from typing import Any, NoReturn

from ifam.cli.parser import VERBS, parse
from ifam.cli.stopped import what_is_left
from ifam.commands import recorded
from ifam.distributed import (
    announce_error,
    await_stopped,
    end_started,
    end_with_parent,
    first_process,
    forget_error,
    is_one_of_several,
    leave_group,
    reported_elsewhere,
)
from ifam.errors import IfamError, ReportedError
from ifam.interruption import Interrupted, ignore_signals, interruptible
from ifam.io import one_line
from ifam.logs import shown
from ifam.pulse import still_working

# Seconds in which another process reports its error, before the end of this one ends it.
_OTHERS_REPORT = 0.5


def main(args: list[str] | None = None) -> None:
    """Run a verb; input errors are reported in one sentence on standard error, with exit status 2."""
    started, is_program = time.time(), args is None
    if args is None:
        _use_utf8()
    end_with_parent()
    forget_error()
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
            try:
                _run(verb, settings)
            except SystemExit as judged:
                # An audit that fails again is the same result.
                if judged.code != 1:
                    raise
            if first_process() and not repetition.is_equal():
                sys.exit(1)
    except IfamError as error:
        if isinstance(error, ReportedError):
            time.sleep(_OTHERS_REPORT)
        elif announce_error():
            print(f"ifam: {one_line(_plain(error))}", file=sys.stderr, flush=True)
        _end(2, is_program)
    except OSError as error:
        if error.filename is None:
            raise
        if announce_error():
            reason = (
                f"{error.filename} cannot be used ({error.strerror}); check its name and permissions, or give another."
            )
            print(f"ifam: {one_line(reason)}", file=sys.stderr, flush=True)
        _end(2, is_program)
    except Interrupted as interrupted:
        if is_program:
            ignore_signals()
        if reported_elsewhere():
            # Whoever has started the processes ends them all when one fails.
            _end(2, is_program)
        if first_process():
            state = what_is_left(verb, settings, started)
            print(f"ifam: Stopped by {interrupted}: {state}.", file=sys.stderr, flush=True)
        await_stopped()
        sys.exit(interrupted.exit_status)


def _run(verb: str, settings: dict[str, Any]) -> None:
    with recorded(verb, settings), still_working(f"ifam {verb}"):
        VERBS[verb](**settings)


def _end(status: int, is_program: bool) -> NoReturn:
    """End this process and those that it has started, and leave the others; at once if it is one of several.

    Until Python has ended, which takes seconds, the others would not be ended, and would report the same error.
    """
    end_started()
    leave_group()
    if is_program and is_one_of_several():
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


def _use_utf8() -> None:
    """Restart in Python's UTF-8 mode if the locale uses another encoding.

    Otherwise names of files and classes could be decoded differently than in other locales, or not at all.
    """
    if sys.getfilesystemencoding().lower() != "utf-8" and not sys.flags.utf8_mode:
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, "-X", "utf8", "-m", "ifam.cli", *sys.argv[1:]])


def _plain(error: IfamError) -> str:
    """The message of an error; one raised in a data loading process is wrapped in a traceback."""
    return str(error).rpartition(f"{IfamError.__module__}.{IfamError.__name__}: ")[2]
