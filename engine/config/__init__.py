"""What a person asks for: a file a group of fields, YAML in and out, and the command line."""

from engine.config.augment import AugmentConfig
from engine.config.checks import ConfigError, RankError, require
from engine.config.command_line import command_line, parse
from engine.config.data import DataConfig
from engine.config.distill import DistillConfig
from engine.config.log import LogConfig
from engine.config.memory import MemoryConfig
from engine.config.model import ModelConfig
from engine.config.optim import OptimConfig
from engine.config.parallel import ParallelConfig
from engine.config.precision import PrecisionConfig
from engine.config.resume import find_run
from engine.config.run_config import RunConfig, changed_yaml, field_names, flatten, from_yaml, to_yaml
from engine.config.stop import StopConfig

__all__ = [
    "AugmentConfig",
    "ConfigError",
    "DataConfig",
    "DistillConfig",
    "LogConfig",
    "MemoryConfig",
    "ModelConfig",
    "OptimConfig",
    "ParallelConfig",
    "PrecisionConfig",
    "RankError",
    "RunConfig",
    "StopConfig",
    "changed_yaml",
    "command_line",
    "field_names",
    "find_run",
    "flatten",
    "from_yaml",
    "parse",
    "require",
    "to_yaml",
]
