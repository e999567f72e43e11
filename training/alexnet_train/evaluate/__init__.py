"""Accuracy and calibration of what is served."""
