"""The shipped model on a CPU: convolutions first, then the classifier on cached features."""
