"""``edged-feed``: processes that bring frames from a network or a stream and hand them to the daemon's local socket."""
