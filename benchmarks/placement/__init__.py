"""What placement policies would have paid, on recorded and synthetic spot markets."""
