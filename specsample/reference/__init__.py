"""The reference: every rule, stream and law in pure torch (backend.py has the entry points). Schemes import from its modules, and its
backend from the schemes, so nothing is imported here."""
