"""What runs a deployed graph: one module for each backend, all behind `base.Backend`."""
