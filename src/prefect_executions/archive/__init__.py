"""The archive of sealed bundles: its layout in an object store, seals, marks and checkpoints."""
