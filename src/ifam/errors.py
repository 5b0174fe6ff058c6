"""User-facing errors: one sentence on what is wrong, what was expected and how to fix it."""


class IfamError(ValueError):
    """An error of the input, not of the program. The command line prints its sentence and exits with 2."""
