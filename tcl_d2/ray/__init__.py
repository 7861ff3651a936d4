"""Pictures and archives over a cluster of Ray: the class for `map_batches`, and shards of work, each done once."""

from .segmenter import ImageSegmenter

__all__ = ["ImageSegmenter"]
