"""Public AlexNet weights: fetched, checked, converted to a model repository, and tried on three photos."""
