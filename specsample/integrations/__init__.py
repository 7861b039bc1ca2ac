"""specsample inside other engines: a module for each, which imports it."""
