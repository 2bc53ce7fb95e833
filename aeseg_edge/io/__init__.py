"""Where frames come from and where results go: sources, sinks, and the frame between them."""
