"""Adapters to other engines, one module per engine. An adapter only translates, and imports its engine when it is itself imported."""
