"""Both ends of the link: contract, edged-sync on the device, conversion in the centre."""
