"""AlexNet in PyTorch: its variants, its two towers, its random numbers."""
