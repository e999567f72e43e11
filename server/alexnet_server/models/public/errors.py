"""What can go wrong in an import, each with its mend."""


class WeightsError(ValueError):
    """Weights that cannot be fetched, are not what they should be, or cannot be understood; one line."""
