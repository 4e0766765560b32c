"""edged-sync: brings what the buffer holds to the broker."""
