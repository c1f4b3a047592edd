"""The embedded world: rendered scenes of coloured shapes, their captions, and a network that reads them."""
