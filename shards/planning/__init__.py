"""Which rows are read when: views, and the plan, a pure function of manifest, seed and epoch."""
