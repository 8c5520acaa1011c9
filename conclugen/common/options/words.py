"""A word of a command line, and what is said of a wrong one."""


class OptionsError(ValueError):
    """Wrong configuration; the message names the field or the file, what was found and what is allowed."""


class Word(str):
    """A word of a command line: what it means depends on the type of its field (in a file, on how it is written)."""
