"""Everything numeric below a method: quantizers, packing, packed layers and their backends."""
