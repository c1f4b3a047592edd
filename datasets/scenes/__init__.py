"""The embedded world: rendered scenes of coloured shapes, their captions, and the recogniser that reads them back."""
