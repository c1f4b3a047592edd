"""Methods that go wrong: for testing that the others go on."""
