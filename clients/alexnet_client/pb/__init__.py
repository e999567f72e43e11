"""The wire contract: `classifier.proto` and the modules that `make proto` generates from it."""
