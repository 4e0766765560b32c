"""The durable buffer of results: SQLite segments, one writer, read by edged-sync."""
