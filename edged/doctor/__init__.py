"""``edged doctor``: looks at everything that a technician would look at, and says what to do.

Rules: it changes nothing, least of all the buffer; it needs no network and no daemon; what another command knows it
asks that command's code. A check that cannot look says so and the others go on.
"""
