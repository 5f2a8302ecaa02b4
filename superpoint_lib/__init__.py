"""A small SuperPoint library; conventions are stated here once the modules land."""
