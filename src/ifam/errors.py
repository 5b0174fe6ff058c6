"""What can go wrong in a user's hands: one sentence that names the thing, what was expected and the mend."""


class IfamError(ValueError):
    """An error of the input, not of the program. The command line prints its sentence and exits with 2."""
