"""Indexing a folder of images: every file ends up in the manifest or in the list of rejects."""

from dpeq.data.index.build import index_folder
from dpeq.data.index.summary import IndexSummary, NoManifest

__all__ = ["IndexSummary", "NoManifest", "index_folder"]
