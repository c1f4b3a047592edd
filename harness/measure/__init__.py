"""Measuring on the device: time of a step, memory of a forward, and what it all ran on."""
