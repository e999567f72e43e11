"""Photos that cannot be learned from, or a repository that cannot be started from; one line with the mend."""


class FinetuneError(ValueError):
    """What is wrong, and how to mend it, in one line."""
