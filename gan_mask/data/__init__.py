"""Prepared sets: made from photos (`prepare`, `folder_or_zip`), read (`prepared`), packed for millions (`shards`)."""

from gan_mask.data.prepared import EMBEDDED, FORMAT, INDEX, SPLITS, PreparedSet

__all__ = ["EMBEDDED", "FORMAT", "INDEX", "SPLITS", "PreparedSet"]
