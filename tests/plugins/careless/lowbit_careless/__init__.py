"""A method that breaks its promises: for testing that they are checked."""
