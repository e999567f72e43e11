"""Public AlexNet weights, converted to model repositories: ``alexnet-train import``."""
