"""What every method must keep: the checks behind `harness check-method`, on tiny random denoisers."""
