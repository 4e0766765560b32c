"""``edged diag``: one bundle for support with everything that is known of the device, and none of its secrets.

Rules: whatever goes into the bundle passes ``redaction`` once, as text; what cannot be gathered is named; no result and
no frame is in it; it is bounded, needs no daemon and changes nothing.
"""
