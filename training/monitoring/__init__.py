"""What a run records and shows while it trains: metrics, console, plot, status, and the lock of its folder."""
