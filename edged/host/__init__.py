"""What the operating system gives a service: systemd notifications, handed-over sockets, the journal."""
