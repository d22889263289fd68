"""pytest fixtures for users of tokenmeter."""
