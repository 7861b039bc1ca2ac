"""The reference: every rule, random stream and distribution in pure torch (entry points: backend.py). The schemes import its modules, and
its backend imports the schemes, so nothing is imported here."""
