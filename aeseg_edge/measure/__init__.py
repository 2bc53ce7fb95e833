"""What is measured: latency, power, flicker, this machine."""
