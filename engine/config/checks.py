"""What is raised where a description cannot be meant."""


class ConfigError(ValueError):
    """A run description that cannot be meant; the message says which field and what would do."""


class RankError(ConfigError):
    """A mistake that one process alone sees, so that process tells it."""


def require(condition: bool, message: str) -> None:
    """Raise ConfigError with `message` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)
