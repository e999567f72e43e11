"""The bounded queue and the scheduler that makes batches of it."""
