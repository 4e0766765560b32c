"""Shows edged at work with real processes: broker, daemon, sync and a subscriber that keeps the books."""
