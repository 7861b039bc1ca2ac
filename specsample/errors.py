"""The one way to reject an argument: name it, say what was expected and what was passed."""


def expect(condition, name, expected, got):
    """Raise ValueError unless `condition`."""
    if not condition:
        raise ValueError(f"{name}: expected {expected}, got {got}")
