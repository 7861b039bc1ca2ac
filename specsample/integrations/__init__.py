"""Adapters to other engines, one a name. Each translates and nothing more, and imports its engine when it is asked for."""
