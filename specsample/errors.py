"""One way to refuse an argument: name it, say what was expected, say what came."""


def expect(condition, name, expected, got):
    """Raise ValueError unless `condition`."""
    if not condition:
        raise ValueError(f"{name}: expected {expected}, got {got}")
