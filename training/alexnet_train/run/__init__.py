"""One training run: the loop, the step, the update, the rates."""
