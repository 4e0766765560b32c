"""Where frames come from: spool directory, HTTP, replay; and the decoders of their formats."""
