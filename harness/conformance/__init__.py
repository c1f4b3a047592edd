"""Every metric against the library or closed form that defines it, as `harness doctor` runs it."""
