"""Trained interpolators to compare with: what makes dense videos of key frames that a checkpoint made."""
