"""The error of this package: one sentence that names the input, the reason and the remedy."""


class ExportError(Exception):
    """A file could not be written, run, verified or read back; the message says what and how to mend it."""
