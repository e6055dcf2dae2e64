"""DFPO: post-train language models on rewards you cannot trust."""

from importlib import metadata

__version__ = metadata.version("dfpo")
