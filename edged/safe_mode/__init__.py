"""Safe mode: what runs in the daemon's place while the daemon cannot. Standard library only; ``__main__`` says when."""
