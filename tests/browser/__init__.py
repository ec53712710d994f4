"""A package, so that fixtures of it last as long as its tests do."""
