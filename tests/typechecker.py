"""The type checker of the tests."""

from beartype import beartype


def checked(function):
    """The function with checks by beartype, if it is defined once.

    One within another is defined at each call of that; checking it anew each time took longer than most tests.
    """
    return function if "<locals>" in function.__qualname__ else beartype(function)
