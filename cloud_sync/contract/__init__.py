"""Topics, messages and accounting of the link. Pure: no I/O."""
