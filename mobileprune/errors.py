"""Errors a person can act on: one sentence that names the input, the reason and the remedy."""


class MobilepruneError(Exception):
    """Something that was asked cannot be done; the message says what and how to mend it (exit code 1)."""


class UsageError(MobilepruneError):
    """The request itself is wrong: an unknown name, a budget that is not one (exit code 2)."""
