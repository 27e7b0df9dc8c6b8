"""Where sealed bundles are kept: object storage behind one narrow interface, and what lies where in it."""
